"""Make the models that ship, in results/models/, out of finished runs: smaller, and judged anew.

    python -m bench.shipping RUN RUN

The teacher's adapter is rounded to bf16. The student's matrices are stored in 8 bits, its embedding
in 4 (support/checkpoints/compact.py), without the rows of tokens that it met only once. Both load
into fp32. metrics.json and predictions.csv are then of the smaller files.
"""

import argparse
import shutil
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.results import RESULTS
from data_utils import Split, load_corpus
from lora import load_teacher
from model import load_student
from support import PROJECT
from support.bases import find_base, save_tokenizer
from support.bases.tokens import token_ids
from support.checkpoints import kind_of, read_adapter, write_adapter
from support.checkpoints.compact import compact
from support.checkpoints.shipped import MODELS
from support.corpus import TRAIN
from support.devices import CPU
from support.files import read_json, read_tensors, write_csv, write_json, write_tensors
from support.reporting import summary
from support.reporting.metrics import DEV_SETS
from support.teaching import sentences_of_file
from train_utils import evaluate

WRITTEN = RESULTS / "smollm2_student" / "written.txt.gz"
LEAST = 2  # times that a token was met


def main() -> None:
    """Make each model, and print its size and what it scores beside its run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        target, before = MODELS / run.name, read_json(run / "metrics.json")
        ship(run, target)
        size = sum(file.stat().st_size for file in target.iterdir())
        print(f"{target.name}: {size / 1e6:.1f} MB")
        after = read_json(target / "metrics.json")
        for split in DEV_SETS:
            print(f"  {split}: {summary(before[split])} -> {summary(after[split])}")


def ship(run: Path, target: Path) -> None:
    """Write the smaller model and what it scores."""
    target.mkdir(parents=True, exist_ok=True)
    base = find_base("smollm2", weights=False)
    corpus = load_corpus(PROJECT / "cola_public", base.tokenizer, base.max_length)
    if kind_of(run) == "adapter":
        saved = read_adapter(run)
        rounded = {name: tensor.bfloat16() for name, tensor in saved.tensors.items()}
        write_adapter(target, saved.settings, rounded, saved.base_name, saved.base_fingerprint)
        model = load_teacher(target, None).model
    else:
        tensors, _ = read_tensors(run / "model.safetensors")
        small = compact(without_rare_tokens(tensors, corpus, base.tokenizer))
        write_tensors(target / "model.safetensors", small, {})
        shutil.copyfile(run / "config.json", target / "config.json")
        save_tokenizer(base.tokenizer, base.folder, target)
        model = load_student(target)
    shutil.copyfile(run / "history.csv", target / "history.csv")
    results, rows = evaluate(SimpleNamespace(model=model, corpus=corpus, device=CPU))
    write_csv(target / "predictions.csv", rows)
    write_json(target / "metrics.json", read_json(run / "metrics.json") | results)


def without_rare_tokens(
    tensors: dict[str, Tensor], corpus: dict[str, Split], tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """Return a student's tensors without the rows of tokens that training hardly met."""
    written = sentences_of_file(WRITTEN, corpus, 200_000)
    ids = torch.tensor(list(chain.from_iterable(token_ids(tokenizer, written))))
    met = torch.cat([ids, corpus[TRAIN].input_ids])
    often = torch.bincount(met, minlength=tokenizer.get_vocab_size()) >= LEAST
    kept = often[tensors["vocabulary"]]
    rows = torch.cat([kept, torch.tensor([True])])  # the last is that of unknown tokens
    return tensors | {
        "vocabulary": tensors["vocabulary"][kept],
        "embedding.weight": tensors["embedding.weight"][rows],
    }


if __name__ == "__main__":
    main()
