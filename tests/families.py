"""Small random decoders of many families, for test_families.py; and models that are refused."""

import shutil
from pathlib import Path

import torch
import transformers
from conftest import NANO
from transformers import AutoModel

SIZE = {
    "vocab_size": 1000, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
    "intermediate_size": 80, "max_position_embeddings": 160, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 999,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2}
FAMILIES = {
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 16},
    "Mistral": {**GROUPED, "sliding_window": 120},
    "GPTNeoX": SIZE,
    "OPT": {**SIZE, "ffn_dim": 80, "word_embed_proj_dim": 24},
    "Phi": SIZE,
    "Phi3": GROUPED,
    "Gemma": {**GROUPED, "head_dim": 8},
    "Olmo2": SIZE,
    "Starcoder2": GROUPED,
    "GPT2": SIZE,
}
REFUSED = {  # settings, and words of the reason
    "Mamba": (SIZE, "recurrent or convolutional"),
    "Lfm2": ({**GROUPED, "layer_types": ["conv", "conv", "full_attention"]}, "recurrent or conv"),
    "Gemma2": ({**GROUPED, "head_dim": 8}, "caps its attention scores"),
    "Bert": (SIZE, "it is an encoder$"),
    "T5": ({"vocab_size": 1000, "d_model": 48, "num_layers": 2, "num_heads": 6}, "an encoder with"),
    "Bloom": (SIZE, "AttentionInterface"),
    "GPTNeo": ({**SIZE, "attention_types": [[["global"], 3]]}, "AttentionInterface"),
    "GptOss": ({**GROUPED, "head_dim": 8, "num_local_experts": 4}, "attention sinks"),
}


def make_base(family: str, settings: dict, folder: Path) -> Path:
    """Make a folder with a small random model of a family, under nano's tokenizer."""
    torch.manual_seed(0)
    model = AutoModel.from_config(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder / name)
    return folder
