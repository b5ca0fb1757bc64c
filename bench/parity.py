"""Train with this project and with PEFT, side by side, and compare every loss and every tensor.

    python -m bench.parity nano cola_public
    python -m bench.parity smollm2 cola_public
    python -m bench.parity FOLDER cola_public      # a folder with a full-size GPT-2

The same base weights, the same initial A and B, the same batches of the corpus, Adam, no dropout.
Ours packs sentences; PEFT pads each batch to its longest. Both optimisers get the parameters under
the same names, and no others.
"""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from data_utils import Split, load_corpus, shuffled
from finetune import published_config
from lora import LoraConfig, add_lora
from model import load_classifier
from support.bases import find_base
from support.checkpoints.adapters import PREFIX
from support.corpus import TRAIN
from support.devices import CPU
from train_utils import Training, accumulate_gradients, cross_entropy

BATCH_SIZE, LR = 128, 1e-3


def main() -> None:
    """Print the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="as --gpt_variant takes it")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    losses, tensors = compare_trajectories(args.base, args.corpus, args.steps)
    worst = max(tensors, key=tensors.get)
    print(f"{args.base}, {args.steps} steps of {BATCH_SIZE} sentences")
    print(f"largest relative difference of a loss: {max(losses):.2e}")
    print(f"largest relative difference of a final tensor: {tensors[worst]:.2e} ({worst})")


def compare_trajectories(
    name: str, corpus_folder: Path, steps: int, lr_factor: float = 1.0
) -> tuple[list[float], dict[str, float]]:
    """Train both for ``steps`` steps.

    Args:
        name: a base, as `--gpt_variant` takes it.
        corpus_folder: a folder in CoLA's layout.
        steps: optimiser steps.
        lr_factor: what PEFT's learning rate is multiplied by, to see that a difference is seen.

    Returns:
        The relative difference of each step's loss, and for each final tensor the norm of the
        difference over the norm of PEFT's.
    """
    base = find_base(name)
    corpus = load_corpus(corpus_folder, base.tokenizer, base.max_length)
    split = corpus[TRAIN]
    torch.manual_seed(0)
    ours = load_classifier(base.folder)
    config = published_config(ours)
    add_lora(ours, config)
    training = Training(ours, corpus, cross_entropy, argparse.Namespace(), CPU)
    theirs = peft_model(base.folder, config)
    mine = {PREFIX + n: p for n, p in ours.named_parameters() if p.requires_grad}
    other = {plain_name(n): p for n, p in theirs.named_parameters() if p.requires_grad}
    assert mine.keys() == other.keys()
    with torch.no_grad():
        for name, parameter in other.items():
            parameter.copy_(mine[name])
    ours.train()
    theirs.eval()  # the backbone's dropout is off, as in ours
    optimizers = (
        torch.optim.Adam([mine[name] for name in sorted(mine)], lr=LR),
        torch.optim.Adam([other[name] for name in sorted(mine)], lr=LR * lr_factor),
    )
    order, losses = shuffled(len(split), 0, 0), []
    for step in tqdm(range(steps), disable=None):
        indices = order[BATCH_SIZE * step : BATCH_SIZE * (step + 1)]
        loss = accumulate_gradients(training, indices)[0][0].item()
        logits = padded_logits(theirs, split, indices.tolist())
        expected = F.cross_entropy(logits, split.labels[indices])
        expected.backward()
        losses.append(abs(loss - expected.item()) / expected.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return losses, {name: difference(name, mine[name], other[name]) for name in mine}


def peft_model(folder: Path, config: LoraConfig, attention: str = "sdpa") -> peft.PeftModel:
    """Return PEFT's model with the same trainable set."""
    settings = {**asdict(config), "task_type": "SEQ_CLS"}
    return peft.get_peft_model(hugging_face(folder, attention), peft.LoraConfig(**settings))


def hugging_face(folder: Path, attention: str = "sdpa") -> nn.Module:
    """Return Hugging Face's classifier on a base, its head random; in eval(), without dropout."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, attn_implementation=attention
    )
    model.config.pad_token_id = model.config.eos_token_id
    return model


def plain_name(name: str) -> str:
    """Return the name in a file of a parameter that PEFT has in memory."""
    return name.replace(".default", "").replace(".modules_to_save", "")


def padded_logits(model: nn.Module, split: Split, indices: Iterable[int]) -> Tensor:
    """Return logits (sentences, 2) the usual way: padded to the longest, with a mask."""
    bounds = split.cu_seqlens.tolist()
    rows = [split.input_ids[bounds[i] : bounds[i + 1]] for i in indices]
    # Hugging Face's classifiers look for the last token that is not the pad token, so the pad
    # is a token that no sentence ends in; it is masked, and causal attention never looks ahead.
    pad = model.config.pad_token_id
    assert all(row[-1] != pad for row in rows)
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    device = next(model.parameters()).device
    return model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits


def difference(name: str, ours: Tensor, theirs: Tensor) -> float:
    """Return two tensors' relative difference, without the key's third of GPT-2's ``c_attn.bias``.

    A constant added to every key adds the same to every score of a query, and softmax does not
    see it: the true gradient is zero, both sides compute rounding noise, and Adam, which divides
    by the gradient's own size, makes full steps of it.
    """
    if name.endswith("c_attn.base_layer.bias"):
        third = len(ours) // 3
        ours, theirs = (torch.cat([b[:third], b[2 * third :]]) for b in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


if __name__ == "__main__":
    main()
