"""Decoders of many families, fine-tuned here, against their own classifiers under PEFT.

    python -m bench.families cola_public smollm2      # a small random model of each, and smollm2

Each gets an adapter from a few steps of training, is judged here packed, with the adapter and
merged, and outside padded, in PEFT and from the exported folder: every logit of in_domain_dev.
Last come the models that are refused.
"""

import argparse
import shutil
import tempfile
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import peft
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

from bench.outside import padded_logits, reference
from data_utils import load_corpus, shuffled
from finetune import published_config
from lora import add_lora, lora_tensors, merge_lora
from model import load_classifier
from support import PROJECT
from support.bases import find_base
from support.checkpoints.adapters import write_adapter
from support.checkpoints.export import save_merged
from support.corpus import DEV, TRAIN
from support.devices import CPU
from support.errors import UserError
from train_utils import (
    Training,
    accumulate_gradients,
    count_parameters,
    cross_entropy,
    predict_logits,
)

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
STEPS, BATCH_SIZE, LR = 5, 32, 1e-3


def main() -> None:
    """Print a line a model, then the refusals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("bases", nargs="*", help="as --gpt_variant takes them, beside the small")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    heads = ("base", "parameters", "trained", "PEFT", "in PEFT", "merged", "std")
    print("{:<12} {:>12} {:>10} {:>10} {:>9} {:>9} {}".format(*heads))
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES:
            compare(name, str(make_base(name, FAMILIES[name], Path(folder, name))), args.corpus)
        for name in args.bases:
            compare(name, name, args.corpus)
        for name, (settings, _) in REFUSED.items():
            base = make_base(name, settings, Path(folder, name))
            try:
                load_classifier(base)
            except UserError as error:
                print(str(error).partition(": ")[2])
            else:
                print(f"{name} is NOT refused")


def compare(name: str, variant: str, corpus_folder: Path) -> None:
    """Print one model's counts, and the largest difference of a logit to PEFT and to the export."""
    base = find_base(variant)
    corpus = load_corpus(corpus_folder, base.tokenizer, base.max_length)
    torch.manual_seed(0)
    model = load_classifier(base.folder)
    config = published_config(model)
    add_lora(model, config)
    count = count_parameters(model)
    training = Training(model.train(), corpus, cross_entropy, Namespace(), CPU)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)
    order = shuffled(len(corpus[TRAIN]), 0, 0)
    for step in range(STEPS):
        accumulate_gradients(training, order[BATCH_SIZE * step : BATCH_SIZE * (step + 1)])
        optimizer.step()
        optimizer.zero_grad()
    dev = corpus[DEV]
    ours = predict_logits(model, dev, CPU).double()
    with tempfile.TemporaryDirectory() as folder:
        adapter, merged = Path(folder, "adapter"), Path(folder, "merged")
        write_adapter(adapter, asdict(config), lora_tensors(model), variant, "")
        theirs = peft.PeftModel.from_pretrained(reference(base.folder), adapter, is_trainable=True)
        trained, _ = theirs.get_nb_trainable_parameters()
        in_peft = padded_logits(theirs, dev)
        del theirs
        merge_lora(model)
        save_merged(model, base, merged)
        exported = AutoModelForSequenceClassification.from_pretrained(merged)
        exported.config.pad_token_id = exported.config.eos_token_id
        as_export = padded_logits(exported, dev)
    ours_merged = predict_logits(model, dev, CPU).double()
    differences = (ours - in_peft).abs().max(), (ours_merged - as_export).abs().max()
    print(
        f"{name:<12} {count['total']:>12,} {count['trainable']:>10,} {trained:>10,} "
        f"{differences[0]:>9.1e} {differences[1]:>9.1e} {in_peft.std():.2f}"
    )


def make_base(family: str, settings: dict, folder: Path) -> Path:
    """A folder with a small random model of a family, under nano's tokenizer."""
    torch.manual_seed(0)
    model = AutoModel.from_config(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PROJECT / "nano" / name, folder / name)
    return folder


if __name__ == "__main__":
    main()
