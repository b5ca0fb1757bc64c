"""Tell whether two inputs are the same, whatever they are called and wherever they lie."""

import hashlib

import torch
from torch import Tensor


def fingerprint(*parts: Tensor | str) -> str:
    """Return SHA-256 over tensors and strings, each behind what says where it ends.

    So no other parts have the same fingerprint: ("ab", "c") is not ("a", "bc").
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            content = part.encode()
            digest.update(f"str {len(content)}:".encode())
        else:
            # Viewed as bytes, since NumPy has no bfloat16.
            content = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
        digest.update(content)
    return digest.hexdigest()


def tensors_fingerprint(tensors: dict[str, Tensor], *settings: str) -> str:
    """Return the fingerprint of named tensors in any order, and of the other settings."""
    return fingerprint(*settings, *(part for item in sorted(tensors.items()) for part in item))


def corpus_fingerprint(corpus: dict) -> str:
    """Return the fingerprint of the data, and of the tokenizer's view of them."""
    return fingerprint(*(t for s in corpus.values() for t in (s.input_ids, s.cu_seqlens, s.labels)))
