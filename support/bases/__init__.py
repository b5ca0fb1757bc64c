"""Bases."""

from support.bases.loading import (
    Base,
    base_fingerprint,
    check_packing,
    find_base,
    is_nano,
    load_backbone,
    load_language_model,
    nano_lexicon,
    variant_name,
)
from support.bases.tokens import load_tokenizer, save_tokenizer, token_ids
