"""Causal attention within packed sentences, in the kernels that processors and GPUs are fast in.

Each takes q, k and v (tokens, heads, head_dim), k and v of as many heads or fewer, and returns
(tokens, heads, head_dim), or (sentences, ...) from each sentence's last token where ``last_only``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_utils import Batch

ROWS = 128  # of a product of bf16 on a CPU: a multiple of this


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


def in_repeating_shapes(batch: Batch) -> Batch:
    """Return a batch for bf16 on a CPU: its first prefix repeated, unread, up to whole `ROWS`.

    oneDNN, which multiplies there, spends a millisecond on each product of a new shape.
    """
    tokens = batch.prefix_tokens
    if tokens.is_cuda or not torch.is_autocast_enabled("cpu"):
        return batch
    unread = tokens[:1].expand(-len(tokens) % ROWS)
    return batch._replace(prefix_tokens=torch.cat([tokens, unread]))
