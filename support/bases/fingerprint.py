"""Tell whether two bases are the same, whatever they are called and wherever they lie."""

import json

from torch import nn

from support.fingerprints import tensors_fingerprint

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


def base_fingerprint(backbone: nn.Module) -> str:
    """Return the fingerprint of a loaded base: of its weights, and of what changes its numbers."""
    config = backbone.config
    plain = (None, False, ["full_attention"] * config.num_hidden_layers)  # as if it were not there
    settings = {key: getattr(config, key, None) for key in NUMERIC}
    settings = {key: value for key, value in settings.items() if value not in plain}
    return tensors_fingerprint(backbone.state_dict(), json.dumps(settings, sort_keys=True))
