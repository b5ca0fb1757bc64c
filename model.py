"""The two models: both turn one packed batch into logits of shape (sentences, 2).

`GPT2Classifier`  Hugging Face's GPT-2 blocks (Radford et al. 2019) under a bias-free head that
                  reads each sentence's last token, as `GPT2ForSequenceClassification` does, but on
                  packed sentences: no padding is computed.
`DistilRNN`       the student: embedding, one Elman RNN layer, linear.
"""

import functools
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.utils.rnn import PackedSequence

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import huggingface_hub
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AttentionInterface, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.activations import NewGELUActivation

from data_utils import PROJECT, Batch, UserError, fingerprint, read_bytes

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# PyTorch's x86 builds leave these two functions to oneMKL, which settles on a kernel in the first
# call. Where several threads make that call together, one of them may run a coarse kernel in it,
# its results 1e-4 off (https://github.com/pytorch/pytorch/issues/188792). One element is one
# thread's. tanh is the RNN's and the GELU's of Hugging Face, exp the KL divergence's.
torch.tanh(torch.zeros(1))
torch.exp(torch.zeros(1))

HUB_VARIANTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
VARIANTS = (*HUB_VARIANTS, "nano")
TOKENIZER_FILES = ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
HUB_TIMEOUT = 5  # seconds until an unreachable hub is reported


# ---------------------------------------------------------------------------------------------
# The classifier


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
    """Causal attention within each packed sentence, for `transformers.AttentionInterface`.

    Args:
        module: the attention layer; not used.
        query, key, value: (1, heads, distinct prefixes, head_dim).
        attention_mask: None, since a packed batch needs none.
        scaling: what the dot products are multiplied by.
        dropout: probability of dropping an attention weight; 0, as `load_gpt2` sets it.
        batch: how the tokens are packed.
        last_only: attend from each sentence's last token alone.
        **kwargs: what Hugging Face passes to every attention function.

    Returns:
        (1, distinct prefixes, heads, head_dim), or (1, sentences, heads, head_dim) where
        ``last_only``; and None for the attention weights.
    """
    attend = varlen_blocks if has_varlen(query) else dense_blocks
    rows = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = attend(*(x.index_select(0, batch.prefixes) for x in rows), batch, last_only, scaling)
    return (out if last_only else out.index_select(0, batch.places)).unsqueeze(0), None


def dense_blocks(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, last_only: bool, scaling: float
) -> Tensor:
    """Attention of q, k, v (tokens, heads, head_dim), on any device.

    A run of n sentences of equal length is viewed, without a copy, as a dense (n, heads, length,
    head_dim) block, so nothing is padded and nothing masked.
    """
    sizes = [length * count for length, count in batch.runs]
    outputs = []
    blocks = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
    for block, (length, count) in zip(blocks, batch.runs, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in block)
        out = F.scaled_dot_product_attention(
            q[:, :, -1:] if last_only else q, k, v, is_causal=not last_only, scale=scaling
        )  # (count, heads, length or 1, head_dim)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def varlen_blocks(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, last_only: bool, scaling: float
) -> Tensor:
    """The same in one kernel, FlashAttention's for variable lengths (Dao et al. 2022)."""
    ends, longest = batch.cu_seqlens.int(), batch.runs[0][0]
    starts, reach = ends, longest
    if last_only:
        q, reach = q[ends[1:] - 1], 1
        starts = torch.arange(len(ends), dtype=torch.int32, device=q.device)
    causal = (-1, 0)  # any distance back, none ahead
    return varlen_attn(q, k, v, starts, ends, reach, longest, scale=scaling, window_size=causal)


def has_varlen(query: Tensor) -> bool:
    """Whether the kernel for variable lengths takes this tensor: half precision on a GPU."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


AttentionInterface.register("packed", packed_attention)


class GPT2Classifier(nn.Module):
    """GPT-2 and a bias-free 2-class head; the names are `GPT2ForSequenceClassification`'s."""

    def __init__(self, transformer: GPT2Model):
        super().__init__()
        self.transformer = transformer
        self.score = nn.Linear(transformer.config.n_embd, 2, bias=False)
        nn.init.normal_(self.score.weight, std=transformer.config.initializer_range)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (sentences, 2) of a packed batch.

        The head reads each sentence's last token alone. So the last block needs keys and values for
        every prefix, and everything after them for the last tokens only.
        """
        gpt2, places = self.transformer, batch.places
        last = batch.prefixes[batch.cu_seqlens[1:] - 1]  # (sentences,)
        hidden = gpt2.wte(batch.input_ids[places]) + gpt2.wpe(batch.position_ids[places])
        hidden = hidden.unsqueeze(0)  # (1, distinct prefixes, n_embd), as the blocks want it
        *blocks, block = gpt2.h
        for earlier in blocks:
            hidden = earlier(hidden, batch=batch)
        attended, _ = block.attn(block.ln_1(hidden), batch=batch, last_only=True)
        hidden = hidden[:, last] + attended  # (1, sentences, n_embd)
        hidden = hidden + block.mlp(block.ln_2(hidden))
        return self.score(gpt2.ln_f(hidden)).squeeze(0)


# ---------------------------------------------------------------------------------------------
# The student


class DistilRNN(nn.Module):
    """Embedding, one tanh RNN layer (Elman 1990), linear to 2 classes, on the last token's state.

    Only the ``vocabulary``, the tokens that occur in the training sentences, has rows in the
    embedding: about 6,400 of GPT-2's 50,257 for CoLA. Training is the same, since Adam never moves
    a row that gets no gradient. Every other token reads one row of zeros: the student knows nothing
    of it.
    """

    def __init__(self, vocabulary: Tensor, width: int = 768):
        """A new student.

        Args:
            vocabulary: (rows,) the token ids that have an embedding, rising.
            width: of the embedding and of the hidden state.
        """
        super().__init__()
        self.register_buffer("vocabulary", vocabulary)
        self.embedding = nn.Embedding(len(vocabulary) + 1, width, padding_idx=len(vocabulary))
        self.rnn = nn.RNN(width, width)
        self.linear = nn.Linear(width, 2)

    def rows(self, input_ids: Tensor) -> Tensor:
        """The embedding's row of each token id; the last row for those not in the vocabulary."""
        unknown = len(self.vocabulary)
        found = torch.searchsorted(self.vocabulary, input_ids).clamp(max=unknown - 1)
        return torch.where(self.vocabulary[found] == input_ids, found, unknown)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (sentences, 2) of a packed batch."""
        # A PackedSequence lays tokens out by time, then by sentence, the longest sentence first.
        by_time = torch.argsort(batch.position_ids, stable=True)
        # How many sentences are longer than t, for each t; on the CPU, where nn.RNN wants it.
        lengths, counts = (torch.tensor(column) for column in zip(*batch.runs, strict=True))
        reaching = (lengths.unsqueeze(1) > torch.arange(batch.runs[0][0])) * counts.unsqueeze(1)
        embedded = self.embedding(self.rows(batch.input_ids[by_time]))  # (tokens, width)
        _, last = self.rnn(PackedSequence(embedded, reaching.sum(dim=0)))  # (1, sentences, width)
        return self.linear(last.squeeze(0))


# ---------------------------------------------------------------------------------------------
# Finding and loading GPT-2


def variant_name(variant: str) -> str:
    """The variant as it stands in file names: its name, or a folder's own name."""
    return variant if variant in VARIANTS else Path(variant).resolve().name


def variant_folder(variant: str, weights: bool = True) -> Path:
    """Find a variant's folder, fetching a published one from the Hugging Face hub on first use.

    Args:
        variant: one of `VARIANTS`, or a local folder in Hugging Face format.
        weights: whether ``model.safetensors`` is needed, and not the tokenizer alone.

    Raises:
        UserError: unknown variant, hub unreachable, or a folder that is not GPT-2.
    """
    variant = variant.removeprefix("openai-community/")  # where the hub keeps them
    if variant in HUB_VARIANTS:
        return _from_hub(variant, (*TOKENIZER_FILES, *(("model.safetensors",) if weights else ())))
    folder = PROJECT / "nano" if variant == "nano" else Path(variant)
    if not folder.is_dir():
        raise UserError(
            f"base model {variant}: neither one of {', '.join(VARIANTS)} nor a folder; give it "
            "with --gpt_variant"
        )
    config = folder / "config.json"
    try:
        model_type = json.loads(read_bytes(config)).get("model_type")
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{config}: not a Hugging Face configuration (broken JSON)") from None
    if model_type != "gpt2":
        raise UserError(f"{config}: model_type is {model_type!r}; this project takes 'gpt2'")
    if not (folder / "tokenizer.json").exists():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).exists():
                raise UserError(f"{folder / name}: no such file; the folder lacks its tokenizer")
    names = ("model.safetensors", "model.safetensors.index.json")
    if weights and not any((folder / name).exists() for name in names):
        raise UserError(
            f"{folder / 'model.safetensors'}: no such file; only safetensors are read: save the "
            "model with save_pretrained(..., safe_serialization=True)"
        )
    return folder


def _from_hub(repo: str, files: tuple[str, ...]) -> Path:
    """Fetch the files that the local cache lacks; asks the hub nothing when it lacks none."""
    download = functools.partial(huggingface_hub.hf_hub_download, repo)
    try:
        try:
            paths = [download(name, local_files_only=True) for name in files]
        except LocalEntryNotFoundError:
            # Asked once and briefly, since hf_hub_download tries an unreachable hub for a minute.
            probe = huggingface_hub.hf_hub_url(repo, files[0])
            huggingface_hub.get_hf_file_metadata(probe, timeout=HUB_TIMEOUT)
            paths = [download(name) for name in files]
    except Exception as error:  # its HTTP library's own errors come through as they are
        if isinstance(error, OSError) and error.filename:
            raise  # the local disk
        raise UserError(
            f"--gpt_variant {repo}: not in the local cache, and the Hugging Face hub did not give "
            f"it ({_first_line(error)}); pass a local folder in Hugging Face format, or use "
            "--gpt_variant nano, which ships with the project"
        ) from None
    return Path(paths[0]).parent


def load_tokenizer(folder: Path):
    """Load a folder's tokenizer.

    Raises:
        UserError: where its files are broken.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer(["a"], verbose=False)  # some of its settings are looked at in use only
    except BaseException as error:  # the tokenizers library raises bare Exceptions, and panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{folder}: the tokenizer cannot be read ({_first_line(error)})") from None
    size = json.loads(read_bytes(folder / "config.json")).get("vocab_size")
    added = tokenizer.get_added_vocab()
    last = max((i for token, i in tokenizer.get_vocab().items() if token not in added), default=0)
    if size is not None and last >= size:  # a student has none: it knows what it does not know
        raise UserError(
            f"{folder}: the tokenizer's token {last} is beyond the model's {size}; they belong to "
            "two models: copy or download the folder again"
        )
    return tokenizer


def max_length(folder: Path) -> int:
    """The number of positions of the model in ``folder``, which is the longest sentence's."""
    return GPT2Config.from_pretrained(folder, local_files_only=True).n_positions


LOADING_ERRORS = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


def load_gpt2(folder: Path, architecture=GPT2Model, **kwargs) -> GPT2Model | GPT2LMHeadModel:
    """Load a folder's weights in fp32, with GPT-2's own dropout off, in evaluation mode.

    Args:
        folder: as `variant_folder` returns it.
        architecture: ``GPT2Model``, or ``GPT2LMHeadModel`` for generation.
        **kwargs: for ``from_pretrained``.

    Raises:
        UserError: where weights are missing, truncated or of other shapes.
    """
    remedy = "copy or download the folder again"
    try:
        model, info = architecture.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            output_attentions=False,  # which packed attention has none of
            **kwargs,
        )
        config = model.config
        if min(config.n_layer, config.n_head) < 1 or not config.initializer_range >= 0:
            raise ValueError("config.json: n_layer, n_head or initializer_range is out of range")
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: cannot be loaded ({_first_line(error)}); {remedy}") from None
    if info["missing_keys"]:
        some = sorted(info["missing_keys"])[0]
        raise UserError(
            f"{folder}: {len(info['missing_keys'])} tensors are missing, {some} first; {remedy}"
        )
    return model.eval()


def load_classifier(folder: Path) -> GPT2Classifier:
    """GPT-2 for packed batches under a new head; see `load_gpt2`."""
    transformer = load_gpt2(folder, attn_implementation="packed")
    for block in transformer.h:
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = nn.GELU("tanh")  # the same function in one pass instead of eight
    return GPT2Classifier(transformer)


def base_fingerprint(transformer: GPT2Model) -> str:
    """Fingerprint of the weights and of what else decides the numbers: not of path or file."""
    config = transformer.config
    settings = (
        config.n_head,
        config.activation_function,
        config.layer_norm_epsilon,
        config.scale_attn_weights,
        config.scale_attn_by_inverse_layer_idx,
    )
    tensors = sorted(transformer.state_dict().items())
    return fingerprint(repr(settings), *(part for item in tensors for part in item))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
