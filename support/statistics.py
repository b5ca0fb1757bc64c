"""How sure can one be of a result, and of a difference between two?

95% intervals after Wilson (1927) and, for MCC, Efron's bootstrap (1979); the paired test after
McNemar (1947), exact.
"""

import numpy as np

from support.metrics import matthews_corrcoef

DRAWS = 1000  # of the bootstrap


def score(labels: np.ndarray, answers: np.ndarray) -> dict:
    """What is shown of a model's answers on a dev set; both arrays (sentences,) of 0 and 1."""
    right, mcc, n = labels == answers, matthews_corrcoef(labels, answers), len(labels)
    draws = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    resampled = [matthews_corrcoef(labels[draw], answers[draw]) for draw in draws]
    return {
        "right": right,  # (sentences,)
        "accuracy": right.mean(),
        "interval": wilson_interval(int(right.sum()), n),
        "majority": max(labels.mean(), 1 - labels.mean()),
        "mcc": mcc,
        "mcc_interval": np.quantile(resampled, (0.025, 0.975)),
        "one_class": " (one class only)" if len(set(answers.tolist())) == 1 else "",
    }


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
