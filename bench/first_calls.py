"""Start processes anew, and compare what each computes first with what it computes next.

    python -m bench.first_calls --processes 100

A library that settles on its kernels in a first call may compute that one otherwise; see the
beginning of model.py. Each process takes the loss and gradients of one step of nano, of a student
under a teacher and of LoRA with dropout, twice from the same weights and seeds; they must agree bit
for bit. Leave the machine alone meanwhile: what this looks for wants all threads at work at once.
Prints what differed, and exits with status 1 if anything did.
"""

import argparse
import subprocess
import sys
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from data_utils import load_corpus, shuffled
from distil import distillation
from finetune import published_config
from lora import add_lora
from model import load_classifier
from student import DistilRNN
from support.bases import find_base
from support.corpus import TRAIN
from support.devices import CPU, keep_freed_memory
from train_utils import Training, accumulate_gradients, cross_entropy

SR_NO, BATCH_SIZE = 1, 32


def main() -> int:
    """Returns 1 if any process computed two things."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--one", action="store_true", help="be one of these processes")
    args = parser.parse_args()
    if args.one:
        print("\n".join(differing()))
        return 0
    found = []
    for number in tqdm(range(1, args.processes + 1), desc="processes", disable=None):
        command = [sys.executable, "-m", "bench.first_calls", "--one"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found += [f"process {number}: {line}" for line in output.splitlines() if line]
    for line in found:
        print(line)
    print(f"{args.processes} processes: {len(found)} differences")
    return int(bool(found))


def differing() -> list[str]:
    """What the first and the second step of this process do not agree on."""
    keep_freed_memory()
    base = find_base("nano")
    corpus = load_corpus(base.folder / "corpus", base.tokenizer, base.max_length)
    logits = torch.linspace(-4, 4, 2 * len(corpus[TRAIN])).view(-1, 2)
    corpus[TRAIN] = replace(corpus[TRAIN], teacher_logits=logits)
    torch.manual_seed(1)
    student = DistilRNN(corpus[TRAIN].input_ids.unique())
    teacher = load_classifier(base.folder)
    add_lora(teacher, published_config(teacher, lora_dropout=0.1))
    lines = []
    for model, loss in ((student, distillation(2.0, 0.5)), (teacher, cross_entropy)):
        training = Training(model.train(), corpus, loss, argparse.Namespace(), CPU)
        first, second = (step(training) for _ in range(2))
        names = [name for name, value in first.items() if not value.equal(second[name])]
        if names:
            lines.append(f"{type(model).__name__}: {', '.join(names)}")
    return lines


def step(training: Training) -> dict[str, Tensor]:
    """Loss and gradients of the first batch."""
    torch.manual_seed(1)
    training.model.zero_grad()
    indices = shuffled(len(training.corpus[TRAIN]), SR_NO, 0)[:BATCH_SIZE]
    (loss, *_), _ = accumulate_gradients(training, indices)
    named = training.model.named_parameters()
    return {"loss": loss, **{n: p.grad.clone() for n, p in named if p.grad is not None}}


if __name__ == "__main__":
    sys.exit(main())
