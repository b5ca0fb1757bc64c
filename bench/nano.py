"""How much of nano's corpus do shallow cues tell, and how much does its model know unasked?

    python -m bench.nano

Logistic regressions on words, on words and pairs of neighbours, and on the number of words, trained
on the training split. The model's share is of fresh minimal pairs, in which it finds the acceptable
sentence the likelier.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from bench import markdown
from nano.make_nano import PHENOMENA, Grammar, pair
from support.bases import load_language_model, load_tokenizer
from support.bases.tokens import NANO
from support.corpus import TRAIN, read_corpus

FRESH = 40  # pairs of each phenomenon


def main() -> None:
    """Print both."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    words = {"token_pattern": r"\w+|[^\w\s]"}
    cues = {
        "words": CountVectorizer(lowercase=False, **words),
        "words, lower-cased": CountVectorizer(**words),
        "words and pairs": CountVectorizer(lowercase=False, ngram_range=(1, 2), **words),
        "words and pairs, lower-cased": CountVectorizer(ngram_range=(1, 2), **words),
        "length": make_pipeline(FunctionTransformer(lengths), OneHotEncoder()),
    }
    corpus = read_corpus(NANO / "corpus").rows
    rows = [("cue", *(split for split in corpus if split != TRAIN))]
    for name, features in cues.items():
        model, shares = make_pipeline(features, LogisticRegression(max_iter=5000)), []
        for split, sentences in corpus.items():
            texts, labels = [row.sentence for row in sentences], [row.label for row in sentences]
            if split == TRAIN:
                model.fit(texts, labels)
            else:
                shares.append(f"{model.score(texts, labels):.1%}")
        rows.append((name, *shares))
    print(markdown(rows))
    told, pairs = minimal_pairs()
    print(
        f"\nThe acceptable sentence is the likelier in {told / pairs:.1%} of {pairs} fresh pairs."
    )


def lengths(sentences: list[str]) -> list[list[int]]:
    """Return the number of words of each sentence."""
    return [[len(sentence.split())] for sentence in sentences]


@torch.no_grad()
def minimal_pairs() -> tuple[int, int]:
    """Return in how many fresh pairs the model finds the acceptable sentence likelier, of how many.

    A sentence opens a text: it stands behind the end-of-text token.
    """
    model, tokenizer, grammar = (
        load_language_model(NANO),
        load_tokenizer(NANO),
        Grammar("fresh", "all"),
    )
    end, told, pairs = model.config.eos_token_id, 0, 0
    for function in (f for domain in PHENOMENA.values() for f in domain.values()):
        for _ in range(FRESH):
            likelihoods = []
            for sentence in pair(grammar, function):
                ids = torch.tensor([end, *tokenizer.encode(sentence).ids])
                logits = model(ids[None, :-1]).logits[0]
                likelihoods.append(-F.cross_entropy(logits, ids[1:], reduction="sum"))
            told, pairs = told + int(likelihoods[0] > likelihoods[1]), pairs + 1
    return told, pairs


if __name__ == "__main__":
    main()
