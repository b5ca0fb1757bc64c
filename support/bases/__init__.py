"""Bases: where does a pretrained model come from, is it whole, and is it the same as another?

A name, a folder, a GGUF file or a hub's repository becomes a folder and a tokenizer; a folder
becomes a model that packed attention provably serves, and a fingerprint that tells it from others.
"""

from support.bases.finding import Base, find_base, variant_name
from support.bases.fingerprint import base_fingerprint
from support.bases.loading import load_backbone, load_language_model
from support.bases.tokens import load_auto_tokenizer, load_tokenizer, save_tokenizer, token_ids

__all__ = [
    "Base", "base_fingerprint", "find_base", "load_auto_tokenizer",
    "load_backbone", "load_language_model", "load_tokenizer", "save_tokenizer", "token_ids",
    "variant_name",
]  # fmt: skip
