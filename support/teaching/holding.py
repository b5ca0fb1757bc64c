"""Hold labelled sentences out of training, and set a student's thresholds on them."""

import math

import numpy as np

from data_utils import Split
from support.corpus import TRAIN
from support.decisions import Decision
from support.errors import UserError
from support.teaching.edits import bare

HELD_OUT = "held_out"
LEAST_SLOPE = 1e-3  # far below that of a student which has learnt anything


def hold_out(corpus: dict[str, Split], size: int) -> dict[str, Split]:
    """Return the corpus with ``size`` of its training sentences in a split of their own.

    They are the same for every sr_no, so that a teacher's answers for the rest serve all. A corpus
    may have a sentence twice: no copy of one that is held out stays among the training sentences.
    """
    if not size:
        return corpus
    train = corpus[TRAIN]
    held_out, rest = np.split(np.random.default_rng(0).permutation(len(train)), [size])
    taken = {bare(train.sentences[i]) for i in held_out}
    rest = np.array([i for i in np.sort(rest) if bare(train.sentences[i]) not in taken])
    if not rest.size:
        raise UserError(f"--held_out {size}: the corpus has {len(train)}; hold out fewer")
    corpus = {**corpus, TRAIN: train.chosen(rest), HELD_OUT: train.chosen(held_out)}
    if len(corpus[HELD_OUT].labels.unique()) == 1:
        raise UserError(f"--held_out {size}: these have one label; hold out more")
    return corpus


def linear_discriminant(margins: np.ndarray, labels: np.ndarray, rule: str) -> Decision:
    """Return thresholds and probabilities by the linear discriminant of two classes (Fisher 1936).

    Margins (sentences,) of either label, 0 or 1, are taken to be normal, with means of their own
    and one variance. Then Bayes' rule gives the posterior, with no further choice:

        p(acceptable) = sigmoid(slope * (margin - halfway) + log(n acceptable / n unacceptable))

    where slope is the gap between the means divided by the variance, and halfway their middle.
    "accuracy" decides at p = 0.5, where mistakes are fewest. "balanced" lets both classes weigh
    the same, for a good MCC: it decides halfway, where p is the share of acceptable sentences.
    Margins that tell nothing, or the opposite, have the least slope: p is that share for all.
    """
    below, above = margins[labels == 0], margins[labels == 1]
    halfway, gap = (below.mean() + above.mean()) / 2, above.mean() - below.mean()
    squares = np.square(below - below.mean()).sum() + np.square(above - above.mean()).sum()
    variance = squares / max(len(margins) - 2, 1)
    slope = max(gap / max(variance, 1e-6), LEAST_SLOPE)
    log_odds = math.log(len(above) / len(below))
    thresholds = {"balanced": float(halfway), "accuracy": float(halfway - log_odds / slope)}
    return Decision(rule, thresholds, float(slope), float(log_odds - slope * halfway))
