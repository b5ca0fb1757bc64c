"""Load a base from a whole folder, and refuse by its name what packed attention cannot serve.

Importing transformers takes seconds, which a student need not wait for: it is imported in use.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from support.bases.pretrained import check_needs_no_code, read_pretrained
from support.bases.tokens import TOKENIZER
from support.errors import UserError, first_line
from support.files import read_json

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # one file, or several
CAPS = ("attn_logit_softcapping", "attention_logit_cap", "logits_soft_cap")
MIXERS = {"conv", "linear_attention", "mamba", "recurrent"}  # of a configuration's layer_types


def check_folder(folder: Path, weights: bool) -> Path:
    """Return a folder that has all that a base needs, and nothing that would be run.

    Its weights, where they are needed, are safetensors, and all that would be loaded are there.
    """
    check_needs_no_code(read_json(folder / CONFIG), folder)
    names = {path.name for path in folder.iterdir()}
    for file in ("vocab.json", "merges.txt"):
        if not {file, TOKENIZER, "tokenizer.model"} & names:
            raise UserError(f"{folder / file}: no such file; the folder lacks its tokenizer")
    if not weights:
        return folder
    shards = {WEIGHTS}
    if WEIGHTS not in names and INDEX in names:
        index = read_json(folder / INDEX).get("weight_map")
        shards = {str(name) for name in index.values()} if isinstance(index, dict) else shards
    for name in sorted(shards):
        if name not in names or not name.endswith(".safetensors"):
            what = "not safetensors" if name in names else "no such file"
            raise UserError(
                f"{folder / name}: {what}; only safetensors are read: save the model with "
                "save_pretrained(..., safe_serialization=True), or copy the whole folder again"
            )
    if "adapter_config.json" in names:  # transformers adds it to the base where PEFT is installed
        raise UserError(
            f"{folder / 'adapter_config.json'}: an adapter beside its base; move it to a folder of "
            "its own"
        )
    return folder


def load_backbone(folder: Path, attention: Callable | None = None) -> nn.Module:
    """Load a base's blocks, with ``attention``, by `AttentionInterface`, in place of their own."""
    from transformers import AttentionInterface, AutoModel

    model = load_pretrained(AutoModel, folder)
    if attention:
        AttentionInterface.register("packed", attention)
        model.set_attn_implementation("packed")
    return model


def load_language_model(folder: Path) -> nn.Module:
    """Load a base with its own head, for generation."""
    from transformers import AutoModelForCausalLM

    return load_pretrained(AutoModelForCausalLM, folder)


def load_pretrained(architecture: type, folder: Path) -> nn.Module:
    """Load a folder's weights in fp32, with the model's own dropout off, in evaluation mode."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = read_pretrained(AutoConfig, folder)
        if any(getattr(c, "quantization_config", None) for c in (config, config.get_text_config())):
            # Packages of others would read them, or kernels from the hub.
            raise UserError(f"{folder}: its weights are quantised; only plain ones are read")
        if architecture is AutoModel:  # the blocks alone, for a classifier
            check_architecture(config, folder)
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        # Packed attention has no attentions to show, and nobody reads the blocks' states.
        config.output_attentions = config.output_hidden_states = False
        config.return_dict = True
        config._attn_implementation = None  # which may name other packages, or code on the hub
        settings = {"config": config, "dtype": torch.float32, "use_safetensors": True}
        model, info = read_pretrained(architecture, folder, output_loading_info=True, **settings)
        if min(config.num_hidden_layers, config.num_attention_heads) < 1:
            raise ValueError("config.json: no layers or no heads")
        if not getattr(config, "initializer_range", 0) >= 0:
            raise ValueError("config.json: initializer_range is out of range")
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} first")
    except (UserError, MemoryError):
        raise
    except Exception as error:  # transformers has no one kind for files that are broken
        reason = f"cannot be loaded ({first_line(error)}); copy or download the folder again"
        raise UserError(f"{folder}: {reason}") from None
    return model.eval()


def check_architecture(config, folder: Path) -> None:
    """Refuse, before any weight is read, a model that is no decoder of the kind that is needed."""
    from transformers.models.auto import modeling_auto as auto

    kind = type(config)
    model = auto.MODEL_MAPPING.get(kind, None)
    layers = set(getattr(config, "layer_types", None) or ())
    reasons = {
        "it is an encoder with a decoder": getattr(config, "is_encoder_decoder", False),
        "it is an encoder": kind in auto.MODEL_FOR_MASKED_LM_MAPPING,
        "it is no decoder that transformers knows": (
            model is None or kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING
        ),
        "it has recurrent or convolutional layers, which would mix packed sentences": (
            getattr(model, "_is_stateful", False) or layers & MIXERS
        ),
        "its attention does not go through transformers' AttentionInterface": (
            not getattr(model, "_supports_attention_backend", False)
        ),
        "transformers has no classifier of its family": (
            kind not in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        ),
        "it caps its attention scores": any(getattr(config, key, None) for key in CAPS),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{folder}: {config.model_type} cannot be used here: {reason}")
