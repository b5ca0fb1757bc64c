"""Which plain mistakes of everyday English does a model recognise? 200 pairs, by ten kinds.

    python -m bench.minimal_pairs smollm2 student      # names that ship, or folders of runs
    python -m bench.minimal_pairs student --first      # the first pair of each kind, with its p

A pair is a good sentence and the same one with a mistake. It is told apart where the good one has
the larger margin (logit 1 less logit 0), whatever the threshold. "right" counts the sentences, two
in a pair, that get the right answer at a model's own threshold. The pairs (minimal_pairs.csv) were
written by hand for this list. They are in no corpus, no prompt and no training, and nothing is
chosen by them.
"""

import argparse
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd

from bench import markdown
from data_utils import tokenize
from predict import chosen_checkpoints, chosen_decision, load_model
from support.decisions import Decision, margins_of
from support.devices import CPU
from support.errors import UserError
from support.reporting.statistics import wilson_interval
from train_utils import predict_logits

PAIRS = pd.read_csv(Path(__file__).with_suffix(".csv"))
KEPT = "minimal_pairs.csv"  # in a folder of results/: the margins of its model


def main() -> None:
    """Judge every pair by every model, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--first", action="store_true", help="the first pair of each kind")
    args = parser.parse_args()
    try:
        chosen = chosen_checkpoints(Namespace(checkpoint=args.checkpoints, given=set()))
        judged = {name: judge(folder) for name, folder in chosen.items()}
    except UserError as error:
        parser.error(str(error))
    print(markdown(first_pairs(judged) if args.first else by_kind(judged)))


def judge(folder: Path) -> pd.DataFrame:
    """Return what `judged` does, of a model as `predict` would use it."""
    decision = chosen_decision(folder.name, folder, Namespace(given=set()))
    return judged(pair_margins(folder), decision)


def pair_margins(folder: Path) -> pd.DataFrame:
    """Return the kind of each pair, and the margins that a model gives the good and the bad one."""
    good, bad = np.split(margins_by(folder, [*PAIRS["good"], *PAIRS["bad"]]), 2)
    return pd.DataFrame({"kind": PAIRS["kind"], "good": good, "bad": bad})


def margins_by(folder: Path, sentences: list[str]) -> np.ndarray:
    """Return the margins (sentences,) that a saved model gives."""
    model, tokenizer, longest = load_model(folder, Namespace(given=set()))
    split = tokenize(tokenizer, sentences, [0] * len(sentences), longest, "the list")
    return margins_of(predict_logits(model, split, CPU))


def judged(margins: pd.DataFrame, decision: Decision) -> pd.DataFrame:
    """Return, for each pair, whether it is told apart, both p and answers, and how much is right.

    ``margins`` are those of `pair_margins`.
    """
    table = pd.DataFrame({"kind": margins["kind"], "told": margins["good"] > margins["bad"]})
    for name in ("good", "bad"):
        table[f"p_{name}"] = decision.p_acceptable(margins[name])
        table[name] = decision.answers(margins[name])
    table["right"] = (table["good"] + 1 - table["bad"]) / 2
    return table


def by_kind(judged: dict[str, pd.DataFrame]) -> list[tuple[str, ...]]:
    """Return how many pairs of each kind are told apart, and how many answers are right."""
    heads = [f"{name}, {what}" for name in judged for what in ("told apart", "right")]
    rows = [("kind", *heads)]
    for kind in PAIRS["kind"].unique():
        row = [kind]
        for table in judged.values():
            part = table[table["kind"] == kind]
            right = int(2 * part["right"].sum())
            row += [f"{part['told'].sum()} of {len(part)}", f"{right} of {2 * len(part)}"]
        rows.append(tuple(row))
    whole = ["all"]
    for table in judged.values():
        low, high = wilson_interval(int(table["told"].sum()), len(table))
        whole += [f"{table['told'].mean():.1%} ({low:.0%} to {high:.0%})"]
        whole += [f"{table['right'].mean():.1%}"]
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
