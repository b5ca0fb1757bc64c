"""Which plain mistakes of everyday English does a model recognise? 200 pairs, by ten kinds.

    python -m bench.minimal_pairs smollm2 student      # names that ship, or folders of runs
    python -m bench.minimal_pairs student --first      # the first pair of each kind, with its p

A pair is a good sentence and the same one with a mistake. It is told apart where the good one has
the larger margin (logit 1 less logit 0), whatever the threshold; "right" is the share of all 400
sentences that get the right answer at a model's own threshold. The pairs (minimal_pairs.csv) were
written by hand for this list before any model had judged them. They are in no corpus, no prompt and
no training, and nothing is chosen by them.
"""

import argparse
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.results import markdown
from data_utils import tokenize
from predict import chosen_decision, load_model
from support.checkpoints.students import checkpoint_folder
from support.decisions import margins_of
from support.devices import CPU
from support.errors import UserError
from support.reporting.statistics import wilson_interval
from train_utils import predict_logits

PAIRS = pd.read_csv(Path(__file__).with_suffix(".csv"))


def main() -> None:
    """Judge every pair by every model, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--first", action="store_true", help="the first pair of each kind")
    args = parser.parse_args()
    try:
        judged = {path.name: judge(checkpoint_folder(path)) for path in args.checkpoints}
    except UserError as error:
        parser.error(str(error))
    print(markdown(first_pairs(judged) if args.first else by_kind(judged)))


def judge(folder: Path) -> pd.DataFrame:
    """Return, for each pair, whether a model tells it apart, its p and its answers."""
    plain = Namespace(given=set())
    model, tokenizer, longest = load_model(folder, plain)
    decision = chosen_decision(folder.name, folder, plain)
    sentences = [*PAIRS["good"], *PAIRS["bad"]]
    split = tokenize(tokenizer, sentences, [0] * len(sentences), longest, "minimal pairs")
    good, bad = np.split(margins_of(predict_logits(model, split, CPU)), 2)
    table = pd.DataFrame({"kind": PAIRS["kind"], "told": good > bad})
    for name, margins in (("good", good), ("bad", bad)):
        table[f"p_{name}"], table[name] = decision.p_acceptable(margins), decision.answers(margins)
    table["right"] = (table["good"] + 1 - table["bad"]) / 2
    return table


def by_kind(judged: dict[str, pd.DataFrame]) -> list[tuple[str, ...]]:
    """Return how many pairs of each kind are told apart, and the share of right answers."""
    heads = [f"{name}, {what}" for name in judged for what in ("told apart", "right")]
    rows, sizes = [("kind", *heads)], PAIRS["kind"].value_counts(sort=False)
    for kind, size in sizes.items():
        row = [kind]
        for table in judged.values():
            part = table[table["kind"] == kind]
            row += [f"{part['told'].sum()} of {size}", f"{part['right'].mean():.0%}"]
        rows.append(tuple(row))
    whole = ["all"]
    for table in judged.values():
        counts = (table["told"].sum(), len(PAIRS)), (2 * table["right"].sum(), 2 * len(PAIRS))
        for right, total in counts:
            low, high = wilson_interval(int(right), total)
            whole.append(f"{right / total:.1%} ({low:.0%} to {high:.0%})")
    return [*rows, tuple(whole)]


def first_pairs(judged: dict[str, pd.DataFrame]) -> list[tuple[str, ...]]:
    """Return the first pair of each kind, with the probability that each model gives it."""
    rows = [("a good sentence", *judged, "with a mistake", *judged)]
    for place, pair in PAIRS.drop_duplicates("kind").iterrows():
        cells = []
        for which in ("good", "bad"):
            answers = [table.loc[place, [f"p_{which}", which]] for table in judged.values()]
            words = ("unacceptable", "acceptable")
            cells += [pair[which], *(f"{p:.2f} {words[int(answer)]}" for p, answer in answers)]
        rows.append(tuple(cells))
    return rows


if __name__ == "__main__":
    main()
