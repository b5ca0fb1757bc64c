"""Which mistakes does a model recognise? Twenty minimal pairs, judged by any saved models.

    python -m bench.minimal_pairs CHECKPOINT CHECKPOINT ...

A pair is told apart where the good sentence has the larger margin (logit 1 less logit 0), whatever
the threshold. The pairs are written for this list and are in no corpus.
"""

import argparse
from argparse import Namespace
from pathlib import Path

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
    """Judge every pair by every model, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    args = parser.parse_args()
    try:
        gaps = {folder.name: gaps_of(folder) for folder in args.checkpoints}
    except UserError as error:
        parser.error(str(error))
    print(f"| kind | {' | '.join(gaps)} |")
    print("| --- " * (1 + len(gaps)) + "|")
    for number, kind in enumerate(PAIRS):
        some = slice(4 * number, 4 * number + 4)
        right = [f"{sum(gap > 0 for gap in found[some])} of 4" for found in gaps.values()]
        print(f"| {kind} | {' | '.join(right)} |")
    totals = [f"{sum(gap > 0 for gap in found)} of 20" for found in gaps.values()]
    print(f"| all | {' | '.join(totals)} |\n")
    print(f"| good | bad | {' | '.join(gaps)} |")
    print("| --- " * (2 + len(gaps)) + "|")
    pairs = [pair for some in PAIRS.values() for pair in some]
    for pair, *row in zip(pairs, *gaps.values(), strict=True):
        print(f"| {pair[0]} | {pair[1]} | {' | '.join(f'{gap:+.2f}' for gap in row)} |")


def gaps_of(folder: Path) -> list[float]:
    """Return by how much the margin of each pair's good sentence is larger."""
    model, tokenizer, longest = load_model(folder, Namespace(given=set()))
    sentences = [sentence for some in PAIRS.values() for pair in some for sentence in pair]
    split = tokenize(tokenizer, sentences, [0] * len(sentences), longest, "minimal pairs")
    logits = predict_logits(model, split, CPU)
    margins = logits[:, 1] - logits[:, 0]
    return (margins[::2] - margins[1::2]).tolist()


if __name__ == "__main__":
    main()
