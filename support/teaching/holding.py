"""Hold labelled sentences out of training."""

import numpy as np

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
