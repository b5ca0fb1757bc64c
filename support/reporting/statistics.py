"""How sure can one be of a result, and of a difference between two?

One run: 95% intervals after Wilson (1927) and, for MCC, Efron's bootstrap (1979); the paired test
after McNemar (1947), exact. They cover the choice of sentences.

Several runs: `crossed` covers the choice of sentences and that of seeds. MCC, which is no mean over
sentences, enters by its jackknife pseudo-values (Tukey 1958).
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from support.reporting.metrics import majority, matthews_corrcoef, one_class_remark

DRAWS = 1000  # of the bootstrap
BINS = 15  # of the calibration error, as in Guo et al. 2017


class Estimate(NamedTuple):
    """A figure with its 95% interval, and the two-sided p of its being zero."""

    value: float
    low: float
    high: float
    p: float = float("nan")

    def clipped(self, least: float) -> "Estimate":
        """Return it with no end of the interval beyond what is possible, ``least`` to 1."""
        return self._replace(low=max(self.low, least), high=min(self.high, 1.0))


class Score(NamedTuple):
    """Accuracy and MCC on a dev set, of one run or of one for each of several seeds."""

    majority: float
    accuracy: Estimate
    mcc: Estimate
    accuracies: np.ndarray  # (runs,)
    mccs: np.ndarray  # (runs,)
    remark: str  # `one_class_remark`


def score(labels: np.ndarray, answers: np.ndarray) -> Score:
    """Judge answers (runs, sentences) of 0 and 1 by the labels (sentences,)."""
    n, right, mccs = len(labels), answers == labels, matthews_corrcoef(labels, answers)
    if len(answers) > 1:
        accuracy = crossed(right)
        mcc = crossed(mcc_pseudo_values(labels, answers), mccs.mean())
    else:
        accuracy = Estimate(right.mean(), *wilson_interval(int(right.sum()), n))
        draws = np.random.default_rng(0).integers(n, size=(DRAWS, n))
        resampled = matthews_corrcoef(labels[draws], answers[0, draws])
        mcc = Estimate(mccs[0], *np.quantile(resampled, (0.025, 0.975)))
    remark = one_class_remark([len(set(row.tolist())) == 1 for row in answers])
    accuracy, mcc = accuracy.clipped(0), mcc.clipped(-1)
    return Score(majority(n, labels.sum()), accuracy, mcc, right.mean(axis=1), mccs, remark)


def difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[Estimate, Estimate]:
    """Return by how much ``first`` is better than ``second``, in accuracy and in MCC.

    Both are answers (runs, sentences) of several runs, a row of each of the same seed.
    """
    accuracy = (first == labels).astype(float) - (second == labels)
    pseudo = mcc_pseudo_values(labels, first) - mcc_pseudo_values(labels, second)
    mcc = (matthews_corrcoef(labels, first) - matthews_corrcoef(labels, second)).mean()
    return crossed(accuracy), crossed(pseudo, mcc)


def crossed(values: np.ndarray, value: float | None = None) -> Estimate:
    """Estimate the mean of values (runs, sentences), where both are drawn from more of their kind.

    The model of two crossed random effects: a value is a mean, plus what is the run's, plus what is
    the sentence's, plus a rest. The variance of the mean follows from the mean squares of the
    analysis of variance, its degrees of freedom after Satterthwaite (1946). ``value`` replaces the
    mean in the middle of the interval.
    """
    from scipy.stats import t  # takes a second to import

    values = np.asarray(values, dtype=float)
    (runs, sentences), mean = values.shape, values.mean()
    of_runs, of_sentences = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    free = np.array([runs - 1, sentences - 1, (runs - 1) * (sentences - 1)])
    squares = np.array([
        sentences * np.square(of_runs - mean).sum(),
        runs * np.square(of_sentences - mean).sum(),
        np.square(values - of_runs - of_sentences + mean).sum(),
    ]) / free  # fmt: skip
    squares[2] = squares.min()  # a component of variance that comes out negative counts as none
    total = squares[0] + squares[1] - squares[2]
    variance = total / values.size
    value = mean if value is None else value
    if not variance:
        return Estimate(value, value, value, float(value == 0))
    freedom = total**2 / (squares**2 / free).sum()
    half = t.ppf(0.975, freedom) * variance**0.5
    p = 2 * t.sf(abs(value) / variance**0.5, freedom)
    return Estimate(value, value - half, value + half, float(p))


def p_value(p: float) -> str:
    """Return a p in two digits; below 0.001 it is printed as such, since its digits mean nothing.

    They would rest on the far tails of the assumed distribution, which few sentences cannot test.
    """
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def mcc_pseudo_values(labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return what each sentence adds to each run's MCC, (runs, sentences); the mean is nearly MCC.

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
    """Return the 95% interval of an accuracy."""
    from scipy.stats import binomtest

    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of an even split of what only one of two models got right."""
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def calibration_error(labels: np.ndarray, p_acceptable: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    How far confidence in the likelier answer is from that answer's accuracy, over bins of
    confidence, each weighed by its sentences. A threshold plays no part. Both are (sentences,).
    """
    confidence = np.maximum(p_acceptable, 1 - p_acceptable)
    gap = ((p_acceptable > 0.5) == labels) - confidence
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, gap, BINS)).sum() / len(labels))
