"""Tell whether two bases are the same, whatever they are called and wherever they lie."""

import json
import os
from contextlib import suppress
from pathlib import Path

from torch import nn

from support.bases import loading
from support.bases.loading import CONFIG, INDEX
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
    "rope_interleave", "rope_parameters", "routed_scaling_factor",
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "scale_depth", "scale_emb",
    "sliding_window", "topk_group", "topk_method", "use_bidirectional_attention",
    "use_parallel_residual", "v_head_dim",
)  # fmt: skip
HAS_CTIME = os.name == "posix"  # on Windows st_ctime is the time of a file's creation


def base_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a base's weights, and of the settings that change its numbers.

    The user's cache remembers it by facts of the files that no copy can keep, so that a base is
    loaded once to be known.
    """
    texts = [read_bytes(path) for name in (CONFIG, INDEX) if (path := folder / name).exists()]
    key = fingerprint(*texts, *(facts_of(path) for path in sorted(folder.glob("*.safetensors"))))
    path = cache_folder() / "fingerprints" / f"{key}.json"
    with suppress(UserError, KeyError):  # it is not there, or broken
        return str(read_json(path)["fingerprint"])
    from transformers import AutoModel

    computed = fingerprint_of(loading.load_pretrained(AutoModel, folder))
    with suppress(UserError):  # the cache cannot be written
        replace_file(path, json.dumps({"fingerprint": computed}).encode())
    return computed


def facts_of(path: Path) -> str:
    """Return what tells a file's content from any that it had before, without reading it.

    Size and time of modification can be set. The time of any change, ctime, is the system's own;
    where there is none, the content is read.
    """
    if not HAS_CTIME:
        return fingerprint(read_bytes(path))
    stat = path.stat()
    return repr((path.name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns))


def fingerprint_of(backbone: nn.Module) -> str:
    """Return the fingerprint of a loaded base."""
    config = backbone.config
    plain = (None, False, ["full_attention"] * config.num_hidden_layers)  # as if it were not there
    settings = {key: getattr(config, key, None) for key in NUMERIC}
    settings = {key: value for key, value in settings.items() if value not in plain}
    return tensors_fingerprint(backbone.state_dict(), json.dumps(settings, sort_keys=True))


def cache_folder() -> Path:
    """Return the project's folder in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "lora_and_distillation")
