"""Hold labelled sentences out of training, to set a student's threshold on."""

import math

import numpy as np
from torch import Tensor

from data_utils import Split
from support.corpus import TRAIN
from support.errors import UserError
from support.teaching.edits import bare

HELD_OUT = "held_out"


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


def thresholds(margins: Tensor, labels: Tensor) -> dict[str, float]:
    """Return where a linear discriminant divides margins (sentences,) of both classes, by rule.

    The classes' spread is taken to be one (Fisher 1936). Where both weigh the same, it divides them
    halfway between their means: a good MCC and recall of both ("balanced"). Most sentences of CoLA
    are acceptable; by as many as there are of each, fewer mistakes are made ("accuracy").
    """
    below, above = margins[labels == 0], margins[labels == 1]
    halfway, gap = (below.mean() + above.mean()) / 2, above.mean() - below.mean()
    squares = (below - below.mean()).square().sum() + (above - above.mean()).square().sum()
    variance = squares / max(len(margins) - 2, 1)
    shift = variance / gap.clamp(min=1e-6) * math.log(len(above) / len(below))
    accuracy = (halfway - shift).clamp(margins.min(), margins.max())  # no gap: one answer for all
    return {"balanced": halfway.item(), "accuracy": accuracy.item()}
