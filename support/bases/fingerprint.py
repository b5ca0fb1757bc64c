"""Tell whether two bases are the same, whatever they are called and wherever they lie."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import nn

from support.errors import UserError
from support.files import read_json, replace_file
from support.fingerprints import fingerprint, tensors_fingerprint

# Of a configuration, what changes the numbers and no weight's shape, in the words of the families
# of decoders. A key that a later transformers adds is not among them.
NUMERIC = (
    "activation_function", "alibi", "attention_multiplier", "clip_qkv", "do_layer_norm_before",
    "embedding_multiplier", "head_dim", "hidden_act", "hidden_activation", "layer_norm_eps",
    "layer_norm_epsilon", "layer_types", "logits_scaling", "model_type", "norm_eps",
    "norm_epsilon", "num_attention_heads", "num_key_value_heads", "partial_rotary_factor",
    "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps", "rope_parameters",
    "rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct", "scale_attn_weights",
    "sliding_window", "use_parallel_residual", "use_sliding_window",
)  # fmt: skip
# What the fingerprint of earlier versions left out, and took all the rest of.
LEFT_OUT_BEFORE = {
    "_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "problem_type",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
    "tie_word_embeddings", "is_encoder_decoder",
}  # fmt: skip


class BaseFingerprint(NamedTuple):
    """A base's fingerprint, as it is computed now, and as earlier versions computed it."""

    now: str
    before: str


def base_fingerprint(folder: Path) -> BaseFingerprint:
    """Return the fingerprint of a base's weights, and of the settings that change its numbers.

    It is remembered in the user's cache, so that a base need not be loaded to be known.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    path = cache_folder() / "fingerprints" / f"{fingerprint(repr(facts))[:32]}.json"
    with suppress(UserError, TypeError):  # there is none, or a broken one
        return BaseFingerprint(**read_json(path))
    from transformers import AutoModel

    from support.bases.loading import load_pretrained

    known = fingerprint_of(load_pretrained(AutoModel, folder))
    with suppress(UserError):  # a cache that cannot be written is none
        content = f'{{"now": "{known.now}", "before": "{known.before}"}}\n'
        replace_file(path, content.encode())
    return known


def fingerprint_of(backbone: nn.Module) -> BaseFingerprint:
    """Return the fingerprint of a loaded base."""
    config, weights = backbone.config, backbone.state_dict()
    if config.model_type == "gpt2":
        settings = (
            config.n_head,
            config.activation_function,
            config.layer_norm_epsilon,
            config.scale_attn_weights,
            config.scale_attn_by_inverse_layer_idx,
        )
        now = tensors_fingerprint(weights, repr(settings))
        return BaseFingerprint(now, now)
    values = config.to_dict()
    settings = [(key, values[key]) for key in NUMERIC if values.get(key) is not None]
    everything = sorted((k, v) for k, v in values.items() if k not in LEFT_OUT_BEFORE)
    return BaseFingerprint(
        *(tensors_fingerprint(weights, repr(found)) for found in (settings, everything))
    )


def cache_folder() -> Path:
    """Return the project's folder in the user's cache."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "lora_and_distillation"
