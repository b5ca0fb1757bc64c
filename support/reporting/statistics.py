"""How sure can one be of a result, and of a difference between two?

One run: 95% intervals after Wilson (1927) and, for MCC, Efron's bootstrap (1979); the paired test
after McNemar (1947), exact. They cover the choice of sentences.

Several runs: `crossed` covers the choice of sentences and that of seeds. MCC, which is no mean over
sentences, enters by its jackknife pseudo-values (Tukey 1958).
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from support.reporting.metrics import matthews_corrcoef

DRAWS = 1000  # of the bootstrap
BINS = 15  # of the calibration error, as in Guo et al. 2017


class Estimate(NamedTuple):
    """A figure with its 95% interval, and the two-sided p of its being zero."""

    value: float
    low: float
    high: float
    p: float = float("nan")


class Score(NamedTuple):
    """What is shown of the answers on a dev set, of one run or of one for each of several seeds."""

    right: np.ndarray  # (runs, sentences)
    majority: float
    accuracy: Estimate
    mcc: Estimate
    accuracies: np.ndarray  # (runs,)
    mccs: np.ndarray  # (runs,)
    one_class: int  # how many of the runs answer one class only

    @property
    def remark(self) -> str:
        """What is to stand beside a model that answers one class only; nothing for another."""
        runs = len(self.accuracies)
        of = f": {self.one_class} of {runs}" if runs > 1 else ""
        return f" (one class only{of})" if self.one_class else ""


def score(labels: np.ndarray, answers: np.ndarray) -> Score:
    """Judge answers (runs, sentences) of 0 and 1 by the labels (sentences,)."""
    right = answers == labels
    mccs = np.array([matthews_corrcoef(labels, row) for row in answers])
    if len(answers) > 1:
        accuracy = crossed(right)
        mcc = crossed(mcc_pseudo_values(labels, answers), mccs.mean())
    else:
        n = len(labels)
        accuracy = Estimate(right.mean(), *wilson_interval(int(right.sum()), n))
        draws = np.random.default_rng(0).integers(n, size=(DRAWS, n))
        resampled = [matthews_corrcoef(labels[draw], answers[0, draw]) for draw in draws]
        mcc = Estimate(mccs[0], *np.quantile(resampled, (0.025, 0.975)))
    accuracy, mcc = within(accuracy, 0), within(mcc, -1)
    majority = max(labels.mean(), 1 - labels.mean())
    one_class = sum(len(set(row.tolist())) == 1 for row in answers)
    return Score(right, majority, accuracy, mcc, right.mean(axis=1), mccs, one_class)


def within(found: Estimate, least: float) -> Estimate:
    """With no end of the interval beyond what is possible, ``least`` to 1."""
    return found._replace(low=max(found.low, least), high=min(found.high, 1.0))


def difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[Estimate, Estimate]:
    """By how much ``first`` is better than ``second`` in accuracy and in MCC.

    Both are answers (runs, sentences) of several runs, a row of each of the same seed.
    """
    right = [(answers == labels).astype(float) for answers in (first, second)]
    pseudo = [mcc_pseudo_values(labels, answers) for answers in (first, second)]
    means = [
        np.mean([matthews_corrcoef(labels, row) for row in answers]) for answers in (first, second)
    ]
    return crossed(right[0] - right[1]), crossed(pseudo[0] - pseudo[1], means[0] - means[1])


def crossed(values: np.ndarray, value: float | None = None) -> Estimate:
    """The mean of values (runs, sentences), where both are drawn from more of their kind.

    The model of two crossed random effects: a value is a mean, plus what is the run's, plus what is
    the sentence's, plus a rest. The variance of the mean follows from the mean squares of the
    analysis of variance, its degrees of freedom after Satterthwaite (1946). ``value`` replaces the
    mean in the middle of the interval.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    (runs, sentences), mean = values.shape, values.mean()
    of_runs, of_sentences = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    free = np.array([runs - 1, sentences - 1, (runs - 1) * (sentences - 1)])
    squares = np.array([
        sentences * np.square(of_runs - mean).sum(),
        runs * np.square(of_sentences - mean).sum(),
        np.square(values - of_runs - of_sentences + mean).sum(),
    ]) / free  # fmt: skip
    squares[2] = -min(squares)  # a variance that comes out negative is none
    variance = squares.sum() / values.size
    value = mean if value is None else value
    if not variance:
        return Estimate(value, value, value, float(value == 0))
    freedom = squares.sum() ** 2 / (squares**2 / free).sum()
    half = t.ppf(0.975, freedom) * variance**0.5
    p = 2 * t.sf(abs(value) / variance**0.5, freedom)
    return Estimate(value, value - half, value + half, float(p))


def mcc_pseudo_values(labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """What each sentence adds to each run's MCC, (runs, sentences); their means are nearly MCC.

    A sentence's is n times the MCC of all n sentences, less n - 1 times that of all others.
    """
    n, values = len(labels), np.zeros(answers.shape)
    for given, row in zip(answers, values, strict=True):
        whole = matthews_corrcoef(labels, given)
        for label, answer in product((0, 1), repeat=2):
            alike = (labels == label) & (given == answer)
            if alike.any():
                others = np.arange(n) != alike.argmax()
                rest = matthews_corrcoef(labels[others], given[others])
                row[alike] = n * whole - (n - 1) * rest
    return values


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% interval of an accuracy."""
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of an even split of the sentences that only one of two models got right."""
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def calibration_error(labels: np.ndarray, p_acceptable: np.ndarray) -> float:
    """The expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    How far a model's confidence in its answer is from its accuracy, over bins of confidence, each
    weighed by its sentences. Both arrays are (sentences,).
    """
    confidence = np.maximum(p_acceptable, 1 - p_acceptable)
    gap = ((p_acceptable > 0.5) == labels) - confidence
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, gap, BINS)).sum() / len(labels))


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The share of sentences (sentences,) with the same answer, and Cohen's kappa (1960)."""
    same, a, b = np.mean(first == second), first.mean(), second.mean()
    by_chance = a * b + (1 - a) * (1 - b)
    return float(same), float((same - by_chance) / (1 - by_chance)) if by_chance < 1 else 0.0
