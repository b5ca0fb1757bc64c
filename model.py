"""The classifier: it turns a packed batch into logits of shape (sentences, 2).

A decoder of Hugging Face's, GPT-2 (Radford et al. 2019) or another, stands under a bias-free head
that reads each sentence's last token, as the family's `...ForSequenceClassification` does, but on
packed sentences: no padding is computed.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils import Batch, Split, pack
from support.bases import load_backbone
from support.devices import has_bf16
from support.errors import UserError


class Outputs(NamedTuple):
    """What a model makes of a packed batch, token by token."""

    logits: Tensor  # (sentences, 2)
    hidden_states: Tensor  # (tokens, width)  of the last layer
    tokens: Tensor | slice = slice(None)  # (tokens,)  which token of the batch each state is at


# ---------------------------------------------------------------------------------------------
# Attention without padding


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    *,
    batch: Batch,
    last_only: bool = False,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attend causally within each packed sentence, for `transformers.AttentionInterface`.

    Args:
        query: (1, heads, tokens, head_dim); key and value alike, or with fewer heads, each for a
            group of the query's (grouped-query attention, Ainslie et al. 2023).
        scaling: what the dot products are multiplied by.
        batch: how the tokens are packed.
        last_only: attend from each sentence's last token alone.

    Returns:
        (1, tokens, heads, head_dim), or (1, sentences, ...) where ``last_only``; and no weights.
    """
    # The kernel for variable lengths wants half precision, and a GPU that has it in hardware. On a
    # CPU the kernel for dense blocks is several times slower in half precision.
    half = torch.is_autocast_enabled(query.device.type) and has_bf16(query.device)
    attend, dtype = (varlen_blocks, torch.bfloat16) if half else (dense_blocks, torch.float32)
    if query.is_cuda and not half:
        attend = padded_block
    q, k, v = (x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        return attend(q, k, v, batch, last_only, scaling).unsqueeze(0), None


# The kernels take q, k and v (tokens, heads, head_dim), k and v of as many heads or fewer. They
# return (tokens, heads, head_dim), or (sentences, ...) from each last token where ``last_only``.


def dense_blocks(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, last_only: bool, scaling: float
) -> Tensor:
    """Attend on any device, block by block.

    Each block of n equally long sentences is viewed, without a copy, as a dense tensor (n, heads,
    length, head_dim), so nothing is padded and nothing masked.
    """
    sizes = [length * count for length, count in batch.blocks]
    outputs = []
    pieces = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
    for piece, (length, count) in zip(pieces, batch.blocks, strict=True):
        queries, keys, values = (x.unflatten(0, (count, length)).transpose(1, 2) for x in piece)
        out = F.scaled_dot_product_attention(  # (count, heads, length or 1, head_dim)
            queries[:, :, -1:] if last_only else queries,
            keys,
            values,
            is_causal=not last_only,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def padded_block(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, last_only: bool, scaling: float
) -> Tensor:
    """Attend in one dense tensor, for a GPU, where twenty blocks take twenty times as long as one.

    Padding stands behind a sentence, where causal attention never looks.
    """
    longest, sentences = batch.blocks[0][0], len(batch.labels)
    places = ((batch.position_ids == 0).cumsum(0) - 1) * longest + batch.position_ids

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(sentences * longest, *x.shape[1:]).index_copy(0, places, x)
        return rows.unflatten(0, (sentences, longest)).transpose(1, 2)

    grouped = q.shape[1] != k.shape[1]
    q, k, v = (padded(x) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)[places[batch.last_tokens] if last_only else places]


def varlen_blocks(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, last_only: bool, scaling: float
) -> Tensor:
    """Attend in one kernel, FlashAttention's for variable lengths (Dao et al. 2022)."""
    from torch.nn.attention.varlen import varlen_attn  # takes a second, for GPUs alone

    ends, longest = batch.cu_seqlens.int(), batch.blocks[0][0]
    starts, reach = ends, longest
    if last_only:
        q, reach = q[ends[1:] - 1], 1
        starts = torch.arange(len(ends), dtype=torch.int32, device=q.device)
    causal = (-1, 0)  # any distance back, none ahead
    options = {"window_size": causal, "enable_gqa": q.shape[1] != k.shape[1]}
    return varlen_attn(q, k, v, starts, ends, reach, longest, scale=scaling, **options)


# ---------------------------------------------------------------------------------------------
# The classifier


class Head(nn.Linear):
    """A linear layer that computes in fp32, also under autocast: logits are differences."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Classifier(nn.Module):
    """A decoder and a bias-free 2-class head, named as in its `...ForSequenceClassification`."""

    def __init__(self, backbone: nn.Module):
        """Put a new head on a backbone that `support.bases.loading.load_backbone` has loaded."""
        super().__init__()
        config = backbone.config
        for name, module in list(backbone.named_modules()):
            if type(module).__name__ == "NewGELUActivation":  # GPT-2's, of five passes over memory
                backbone.set_submodule(name, nn.GELU("tanh"))
        self.prefix = backbone.base_model_prefix
        self.add_module(self.prefix, backbone)
        width = getattr(config, "word_embed_proj_dim", config.hidden_size)  # the former is OPT's
        self.score = Head(width, 2, bias=False)
        nn.init.normal_(self.score.weight, std=getattr(config, "initializer_range", 0.02))

    @property
    def backbone(self) -> nn.Module:
        """Return the decoder."""
        return getattr(self, self.prefix)

    def outputs(self, batch: Batch) -> Outputs:
        """Return the logits, and the state at every token."""
        states = self.hidden_states(batch)
        return Outputs(self.score(states[batch.last_tokens]), states)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (sentences, 2)."""
        if self.backbone.config.model_type == "gpt2":
            return self.score(gpt2_last_states(self.backbone, batch))
        return self.score(self.hidden_states(batch)[batch.last_tokens])

    def hidden_states(self, batch: Batch) -> Tensor:
        """Return the last layer's state at every token, (tokens, width)."""
        ids, positions = batch.input_ids.unsqueeze(0), batch.position_ids.unsqueeze(0)
        output = self.backbone(input_ids=ids, position_ids=positions, use_cache=False, batch=batch)
        return output.last_hidden_state[0]


def load_classifier(folder: Path) -> Classifier:
    """Load a base's blocks under a new head, and prove that they read packed sentences apart."""
    classifier = Classifier(load_backbone(folder, packed_attention))
    check_packing(classifier, folder)
    return classifier


@torch.no_grad()
def check_packing(classifier: nn.Module, folder: Path) -> None:
    """Compare the states of three packed sentences with those that the model's own attention gives.

    Whatever differs in the mechanism differs here: attention to later tokens or to sinks, scores
    that are biased, states that leak from one sentence into the next.
    """
    backbone = classifier.backbone
    tokens = torch.tensor([5, 7, 9, 11, 6, 5, 7, 9, 8, 10]) % backbone.config.vocab_size
    split = Split([""] * 3, tokens, torch.tensor([0, 5, 9, 10]), torch.zeros(3, dtype=torch.long))
    batch = pack(split, np.arange(3))
    packed = classifier.outputs(batch).hidden_states[batch.last_tokens]  # (3, width)
    attention = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    sentences = tokens.split([5, 4, 1])
    alone = [backbone(s.unsqueeze(0), use_cache=False)[0][0, -1] for s in sentences]
    backbone.set_attn_implementation(attention)
    apart = (packed - torch.stack(alone)).norm() / packed.norm()
    if not apart < 1e-3:
        sinks = any("sink" in name for name, _ in backbone.named_parameters())
        reason = "it has attention sinks" if sinks else "packed sentences would not be judged alone"
        raise UserError(
            f"{folder}: {backbone.config.model_type} cannot be used here: {reason} (hidden states "
            f"differ by {apart:.0e})"
        )


def gpt2_last_states(gpt2: nn.Module, batch: Batch) -> Tensor:
    """Return the final hidden state (sentences, width) at each sentence's last token.

    It is less work than every state: nobody reads the last block's other tokens. It needs keys and
    values for every token, and everything after them for the last tokens only.
    """
    hidden = (gpt2.wte(batch.input_ids) + gpt2.wpe(batch.position_ids)).unsqueeze(0)
    *blocks, block = gpt2.h
    for earlier in blocks:
        hidden = earlier(hidden, batch=batch)  # (1, tokens, width)
    attended, _ = block.attn(block.ln_1(hidden), batch=batch, last_only=True)
    hidden = hidden[:, batch.last_tokens] + attended  # (1, sentences, width)
    hidden = hidden + block.mlp(block.ln_2(hidden))
    return gpt2.ln_f(hidden).squeeze(0)
