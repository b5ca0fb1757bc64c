"""Hold labelled sentences out of training, to set a student's bias on."""

import numpy as np

from data_utils import Split
from support.corpus import TRAIN
from support.errors import UserError

HELD_OUT = "held_out"


def hold_out(corpus: dict[str, Split], size: int) -> dict[str, Split]:
    """Return the corpus with ``size`` of its training sentences in a split of their own.

    They are the same for every sr_no, so that a teacher's answers for the rest serve all.
    """
    if not size:
        return corpus
    train = corpus[TRAIN]
    if size >= len(train):
        raise UserError(f"--held_out {size}: the corpus has {len(train)}; hold out fewer")
    held_out, rest = np.split(np.random.default_rng(0).permutation(len(train)), [size])
    corpus = {**corpus, TRAIN: train.chosen(np.sort(rest)), HELD_OUT: train.chosen(held_out)}
    if len(corpus[HELD_OUT].labels.unique()) == 1:
        raise UserError(f"--held_out {size}: these have one label, a bias needs two; hold out more")
    return corpus
