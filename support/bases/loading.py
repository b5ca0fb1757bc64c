"""Where does a base model come from, and how is it loaded?"""

import functools
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from data_utils import Split, pack
from support.bases.gguf import converted, find_smollm2
from support.bases.tokens import SETTINGS, TOKENIZER, check_vocabulary, load_tokenizer
from support.errors import UserError, first_line
from support.files import read_json

from support import PROJECT
HUB_VARIANTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
VARIANTS = (*HUB_VARIANTS, "smollm2", "nano")
TOKENIZER_FILES = (TOKENIZER, SETTINGS, "vocab.json", "merges.txt", "tokenizer.model")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HUB_TIMEOUT = 5  # seconds until an unreachable hub is reported


class Base(NamedTuple):
    """A pretrained model on disk, found and looked at but not loaded."""

    name: str  # as the user gave it
    folder: Path
    tokenizer: Tokenizer
    max_length: int  # of a sentence, in tokens


def find_base(name: str, weights: bool = True) -> Base:
    """Find a base by name or folder; ``weights`` says whether more than the tokenizer is needed."""
    folder = base_folder(name, weights)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, folder)
    return Base(name, folder, tokenizer, longest_sentence(folder / "config.json"))


def longest_sentence(path: Path) -> int:
    """The number of a model's positions, or its sliding window where that is shorter.

    Packed attention has no window: it is right for sentences that do not reach beyond one.
    """
    config = read_json(path)
    default = 1024 if config.get("model_type") == "gpt2" else None  # GPT2Config's own
    positions = config.get("max_position_embeddings", config.get("n_positions", default))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    limits = [positions, *([window] if window is not None else [])]
    if not all(type(limit) is int and limit > 0 for limit in limits):
        raise UserError(f"{path}: max_position_embeddings or n_positions = {positions!r}")
    return min(limits)


def variant_name(name: str) -> str:
    """A base as it stands in file names: its name, or a folder's or file's own name."""
    return name if name in VARIANTS else Path(name).resolve().name


def base_folder(name: str, weights: bool = True) -> Path:
    """A base's folder in Hugging Face format; from the hub, or converted, on first use."""
    name = name.removeprefix("openai-community/")  # where the hub keeps GPT-2
    if name == "smollm2":
        return converted(find_smollm2())
    if name.endswith(".gguf"):
        return converted(Path(name))
    folder = PROJECT / "nano" if name == "nano" else Path(name)
    if not folder.is_dir():
        if name in HUB_VARIANTS or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return check_folder(from_hub(name, weights), weights)
        raise UserError(
            f"base model {name}: neither one of {', '.join(VARIANTS)}, nor OWNER/NAME on the hub, "
            "nor a folder or .gguf file here; give it with --gpt_variant"
        )
    return check_folder(folder, weights)


def check_folder(folder: Path, weights: bool) -> Path:
    """Return a folder that has all that a base needs."""
    read_json(folder / "config.json")
    if not (folder / TOKENIZER).exists() and not (folder / "tokenizer.model").exists():
        for file in ("vocab.json", "merges.txt"):
            if not (folder / file).exists():
                raise UserError(f"{folder / file}: no such file; the folder lacks its tokenizer")
    if weights and not any((folder / file).exists() for file in WEIGHTS):
        raise UserError(
            f"{folder / WEIGHTS[0]}: no such file; only safetensors are read: save the model with "
            "save_pretrained(..., safe_serialization=True)"
        )
    return folder


def from_hub(repo: str, weights: bool) -> Path:
    """Fetch a base from the hub; asks it nothing when the local cache has all that is needed."""
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    download = functools.partial(huggingface_hub.hf_hub_download, repo)
    try:
        with suppress(EntryNotFoundError, UserError):
            folder = Path(download("config.json", local_files_only=True)).parent
            return check_folder(folder, weights)
        # Asked once and briefly, since a download tries an unreachable hub for a minute.
        probe = huggingface_hub.hf_hub_url(repo, "config.json")
        huggingface_hub.get_hf_file_metadata(probe, timeout=HUB_TIMEOUT)
        folder = Path(download("config.json")).parent
        for name in (*TOKENIZER_FILES, *(WEIGHTS if weights else ())):
            with suppress(EntryNotFoundError):  # nobody has all of them
                download(name)
        if weights and not (folder / WEIGHTS[0]).exists() and (folder / WEIGHTS[1]).exists():
            for name in sorted(set(read_json(folder / WEIGHTS[1]).get("weight_map", {}).values())):
                download(name)
    except GatedRepoError:
        reason = "its owners ask for an agreement: accept it on the hub, then `hf auth login`"
    except (HTTPError, EntryNotFoundError, OfflineModeIsEnabled, HFValidationError) as error:
        reason = first_line(error)
    else:
        return check_folder(folder, weights)
    raise UserError(
        f"--gpt_variant {repo}: not in the local cache, and the Hugging Face hub did not give "
        f"it ({reason}); pass a local folder in Hugging Face format, or use --gpt_variant nano, "
        "which ships with the project"
    )


# ---------------------------------------------------------------------------------------------
# Loading. Importing transformers takes seconds, which a student need not wait for.


def load_backbone(folder, attention):
    from transformers import AttentionInterface, AutoModel

    AttentionInterface.register("packed", attention)
    return load_pretrained(AutoModel, folder, packed=True)


def base_fingerprint(folder):
    from transformers import AutoModel
    from support.fingerprints import backbone_fingerprint
    now = backbone_fingerprint(load_pretrained(AutoModel, folder))
    return BaseFingerprint(now, now)


class BaseFingerprint(NamedTuple):
    now: str
    before: str


def is_nano(tokenizer):
    return tokenizer.to_str() == load_tokenizer(PROJECT / "nano").to_str()


def nano_lexicon():
    from support.corpus import SPLITS, read_split
    return {w.strip(".,?!").lower() for x in SPLITS for t in read_split(PROJECT / "nano/corpus/raw" / f"{x}.tsv")[0] for w in t.split()}


def load_language_model(folder: Path) -> nn.Module:
    """A base with its own head and attention, for generation."""
    from transformers import AutoModelForCausalLM

    return load_pretrained(AutoModelForCausalLM, folder)


def load_pretrained(architecture: type, folder: Path, packed: bool = False) -> nn.Module:
    """Load a folder's weights in fp32, with the model's own dropout off, in evaluation mode."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    remedy = "copy or download the folder again"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if packed:
            check_configuration(config, folder)
            config._attn_implementation = "packed"
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        # Packed attention has no attentions to show, and nobody reads the blocks' states.
        config.output_attentions = config.output_hidden_states = False
        model, info = architecture.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if min(config.num_hidden_layers, config.num_attention_heads) < 1:
            raise ValueError("config.json: no layers or no heads")
        if not getattr(config, "initializer_range", 0) >= 0:
            raise ValueError("config.json: initializer_range is out of range")
    except (
        # What transformers raises for files that are broken or contradict each other.
        OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError,
        AttributeError, SafetensorError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise UserError(f"{folder}: cannot be loaded ({first_line(error)}); {remedy}") from None
    if info["missing_keys"]:
        some = sorted(info["missing_keys"])[0]
        raise UserError(
            f"{folder}: {len(info['missing_keys'])} tensors are missing, {some} first; {remedy}"
        )
    return model.eval()


# ---------------------------------------------------------------------------------------------
# Which models packed attention can serve


CAPS = ("attn_logit_softcapping", "attention_logit_cap", "logits_soft_cap")
MIXERS = {"conv", "linear_attention", "mamba", "recurrent"}  # of a configuration's layer_types


def check_configuration(config, folder: Path) -> None:
    """Refuse, before any weight is read, a model that is no decoder of the kind that is needed."""
    from transformers.models.auto import modeling_auto as auto

    kind, reason = type(config), ""
    architecture = auto.MODEL_MAPPING.get(kind, None)
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder with a decoder"
    elif auto.MODEL_FOR_MASKED_LM_MAPPING.get(kind, None):
        reason = "it is an encoder"
    elif not (architecture and auto.MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)):
        reason = "it is no decoder that transformers knows"
    elif getattr(architecture, "_is_stateful", False) or MIXERS & set(
        getattr(config, "layer_types", None) or ()
    ):
        reason = "it has recurrent or convolutional layers, which would mix packed sentences"
    elif not getattr(architecture, "_supports_attention_backend", False):
        reason = "its attention does not go through transformers' AttentionInterface"
    elif not auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(kind, None):
        reason = "transformers has no classifier of its family"
    elif any(getattr(config, key, None) for key in CAPS):
        reason = "it caps its attention scores"
    if reason:
        raise UserError(f"{folder}: {config.model_type} cannot be used here: {reason}")


@torch.no_grad()
def check_packing(classifier: nn.Module, folder: Path) -> None:
    backbone = classifier.backbone
    size = backbone.config.vocab_size
    sentences = [[token % size for token in ids] for ids in ([5, 7, 9, 11, 6], [5, 7, 9, 8], [10])]
    bounds = torch.tensor(np.cumsum([0, *map(len, sentences)]))
    tokens = torch.tensor([token for ids in sentences for token in ids])
    packed = pack(Split([""] * 3, tokens, bounds, torch.zeros(3, dtype=torch.long)), np.arange(3))
    together = classifier.read(packed).states[packed.last_tokens]
    backbone.set_attn_implementation("eager")
    alone = [
        backbone(input_ids=torch.tensor([ids]), use_cache=False)[0][0, -1] for ids in sentences
    ]
    backbone.set_attn_implementation("packed")
    apart = (together - torch.stack(alone)).norm() / together.norm()
    if not apart < 1e-3:
        sinks = any("sink" in name for name, _ in backbone.named_parameters())
        reason = "it has attention sinks" if sinks else "packed sentences would not be judged alone"
        raise UserError(
            f"{folder}: {backbone.config.model_type} cannot be used here: {reason} (hidden states "
            f"differ by {apart:.0e})"
        )
