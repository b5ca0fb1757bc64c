"""Which mistakes does a model recognise? Twenty minimal pairs, judged by any saved models.

    python -m bench.minimal_pairs CHECKPOINT CHECKPOINT ...

A pair is told apart where the good sentence has the larger margin (logit 1 less logit 0), whatever
the threshold. The pairs are written for this list and are in no corpus.
"""

import argparse
from argparse import Namespace
from pathlib import Path

import pandas as pd

from data_utils import tokenize
from predict import load_model
from support.devices import CPU
from support.errors import UserError
from train_utils import predict_logits

PAIRS = {
    "agreement": (
        ("The keys to the old cupboard are missing.", "The keys to the old cupboard is missing."),
        ("Every neighbour of ours owns a bicycle.", "Every neighbour of ours own a bicycle."),
        ("The girl who feeds the ducks lives here.", "The girl who feeds the ducks live here."),
        ("These bottles were empty.", "These bottles was empty."),
    ),
    "order": (
        ("My aunt always drinks cold milk.", "My aunt drinks always milk cold."),
        ("They gave the tired driver some water.", "They gave the driver tired some water."),
        ("We rarely see him on Mondays.", "We see rarely on Mondays him."),
        ("She put the lamp on the shelf.", "She the lamp put on the shelf."),
    ),
    "missing arguments": (
        ("The waiter put the plates on the table.", "The waiter put on the table."),
        ("Our team defeated the champions.", "Our team defeated."),
        ("He relies on his brother.", "He relies on."),
        ("The nurse handed me a towel.", "The nurse handed a towel me to."),
    ),
    "reflexives": (
        ("The boy hurt himself.", "The boy hurt herself."),
        ("We blamed ourselves for the delay.", "We blamed themselves for the delay."),
        ("The queen admired herself in the mirror.", "Herself admired the queen in the mirror."),
        ("I bought myself a hat.", "I bought yourself a hat."),
    ),
    "questions": (
        ("What did the farmer sell?", "What did the farmer sell the cow?"),
        ("Who do you think won the race?", "Who do you think that won the race?"),
        ("Where has she hidden the letter?", "Where she has hidden the letter?"),
        ("Which book did they read?", "Which did they read book?"),
    ),
}  # fmt: skip


def main() -> None:
    """Judge every pair by every model, and print how many are told apart and by how much."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    args = parser.parse_args()
    kinds = [kind for kind, pairs in PAIRS.items() for _ in pairs]
    pairs = [pair for pairs in PAIRS.values() for pair in pairs]
    gaps = pd.DataFrame(pairs, kinds, columns=["good", "bad"])
    try:
        for folder in args.checkpoints:
            gaps[folder.name] = gaps_of(folder, pairs)
    except UserError as error:
        parser.error(str(error))
    right = gaps.drop(columns=["good", "bad"]).gt(0)
    print(f"{right.groupby(level=0, sort=False).sum()}\n\nall of 20:\n{right.sum().to_string()}\n")
    print(gaps.to_string(index=False, float_format="{:+.2f}".format))


def gaps_of(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Return by how much the margin of each pair's good sentence is larger."""
    model, tokenizer, longest = load_model(folder, Namespace(given=set()))
    sentences = [sentence for pair in pairs for sentence in pair]
    split = tokenize(tokenizer, sentences, [0] * len(sentences), longest, "minimal pairs")
    logits = predict_logits(model, split, CPU)
    margins = logits[:, 1] - logits[:, 0]
    return (margins[::2] - margins[1::2]).tolist()


if __name__ == "__main__":
    main()
