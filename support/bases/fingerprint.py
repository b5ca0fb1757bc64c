"""Tell whether two bases are the same, whatever they are called and wherever they lie."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import nn

from support.bases import loading
from support.errors import UserError
from support.files import read_bytes, read_json, replace_file
from support.fingerprints import fingerprint, tensors_fingerprint

# What of a configuration changes the numbers and no weight's shape, in the words of the families
# that can be used here. What a later release of transformers adds is not among them.
NUMERIC = (
    "activation_function", "attention_multiplier", "clip_qkv", "do_layer_norm_before",
    "embedding_multiplier", "head_dim", "hidden_act", "hidden_activation", "layer_norm_eps",
    "layer_norm_epsilon", "layer_types", "mlp_layer_types", "model_type",
    "moe_topk", "n_group", "no_rope_layers", "norm_eps", "norm_epsilon", "norm_topk_prob",
    "num_attention_heads", "num_experts_per_tok", "num_key_value_heads", "qk_nope_head_dim",
    "qk_rope_head_dim", "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps",
    "rope_interleave", "rope_parameters", "routed_scaling_factor", "scale_attn_weights",
    "scale_depth", "scale_emb", "sliding_window", "topk_group", "topk_method",
    "use_bidirectional_attention", "use_parallel_residual", "v_head_dim",
)  # fmt: skip
# What the first version left out, and took all the rest of.
LEFT_OUT_BEFORE = {
    "_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "problem_type",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
    "tie_word_embeddings", "is_encoder_decoder",
}  # fmt: skip


class BaseFingerprint(NamedTuple):
    """A base's fingerprint as it is computed now, and as the first version computed it."""

    now: str
    before: str


def base_fingerprint(folder: Path) -> BaseFingerprint:
    """Return the fingerprint of a base's weights, and of the settings that change its numbers.

    The user's cache remembers it, so that a base is loaded once to be known.
    """
    weights = [(str(p.resolve()), p.stat()) for p in sorted(folder.glob("*.safetensors"))]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in weights]
    key = fingerprint(read_bytes(folder / "config.json"), repr(facts))
    path = cache_folder() / "fingerprints" / f"{key}.json"
    with suppress(UserError, TypeError):  # it is not there, or broken
        return BaseFingerprint(**read_json(path))
    from transformers import AutoModel

    computed = fingerprint_of(loading.load_pretrained(AutoModel, folder))
    with suppress(UserError):  # the cache cannot be written
        replace_file(path, json.dumps(computed._asdict()).encode())
    return computed


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
    plain = (None, False, ["full_attention"] * config.num_hidden_layers)  # as if it were not there
    settings = {key: getattr(config, key, None) for key in NUMERIC}
    settings = {key: value for key, value in settings.items() if value not in plain}
    before = sorted((k, v) for k, v in config.to_dict().items() if k not in LEFT_OUT_BEFORE)
    return BaseFingerprint(
        now=tensors_fingerprint(weights, json.dumps(settings, sort_keys=True)),
        before=tensors_fingerprint(weights, repr(before)),
    )


def cache_folder() -> Path:
    """Return the project's folder in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "lora_and_distillation")
