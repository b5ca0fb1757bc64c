"""How sure can one be of a result, and of a difference between two?

95% intervals after Wilson (1927) and, for MCC, Efron's bootstrap (1979); the paired test after
McNemar (1947), exact.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from support.metrics import matthews_corrcoef

DRAWS = 1000  # of the bootstrap


def score(predictions: pd.DataFrame) -> dict:
    """What is shown of a model's answers on a dev set, from its rows of predictions.csv."""
    labels = predictions["label"].to_numpy()  # (sentences,) of 0 and 1
    answers = (predictions["logit_1"] > predictions["logit_0"]).to_numpy(int)
    right, mcc, n = labels == answers, matthews_corrcoef(labels, answers), len(labels)
    draws = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    resampled = [matthews_corrcoef(labels[draw], answers[draw]) for draw in draws]
    one_class = " (one class only)" if len(set(answers)) == 1 else ""
    return {
        "right": right,  # (sentences,)
        "accuracy": right.mean(),
        "interval": wilson_interval(int(right.sum()), n),
        "majority": max(labels.mean(), 1 - labels.mean()),
        "mcc": mcc,
        "mcc_interval": np.quantile(resampled, (0.025, 0.975)),
        "one_class": one_class,
        "text": f"{right.mean():.2%}, MCC {mcc:.3f}{one_class}",
    }


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% interval of an accuracy."""
    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of an even split of the sentences that only one of two models got right."""
    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0
