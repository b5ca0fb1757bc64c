"""When are two inputs the same, whatever they are called and wherever they lie?"""

import hashlib

import torch
from torch import Tensor, nn

IRRELEVANT = {  # of a configuration: what names, packs or generates, and does not compute
    "_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "id2label",
    "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "problem_type",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
    "tie_word_embeddings", "is_encoder_decoder",
}  # fmt: skip


def fingerprint(*parts: Tensor | str | bytes) -> str:
    """SHA-256 over tensors (shape, type and bytes) and strings: the same content, the same name."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            # Viewed as bytes, since NumPy has no bfloat16.
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def tensors_fingerprint(tensors: dict[str, Tensor], settings: str) -> str:
    """Of named tensors in any order, and of what else decides the numbers."""
    return fingerprint(settings, *(part for item in sorted(tensors.items()) for part in item))


def backbone_fingerprint(backbone: nn.Module) -> str:
    """Of a pretrained model's weights and of the settings that decide what it computes."""
    config = backbone.config
    if config.model_type == "gpt2":
        settings = (
            config.n_head,
            config.activation_function,
            config.layer_norm_epsilon,
            config.scale_attn_weights,
            config.scale_attn_by_inverse_layer_idx,
        )
    else:
        found = config.to_dict().items()
        settings = sorted((key, value) for key, value in found if key not in IRRELEVANT)
    return tensors_fingerprint(backbone.state_dict(), repr(settings))
