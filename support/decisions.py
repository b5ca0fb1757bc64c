"""Decide by a margin, logit 1 less logit 0: which answer is given, and how probable is it?"""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Decision(NamedTuple):
    """Where a model decides, and what probability its margins have.

    By default both are softmax's: "acceptable" is what has a margin above 0, where p is 0.5. A
    student that had held-out sentences has two thresholds, of which a rule chooses, and
    p(acceptable) = sigmoid(slope * margin + intercept); `distil.linear_discriminant`.
    """

    rule: str | None = None
    thresholds: dict[str, float] | None = None  # margins, by rule
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def threshold(self) -> float:
        """Return the margin above which the answer is "acceptable"."""
        return self.thresholds[self.rule] if self.thresholds else 0.0

    def answers(self, margins: np.ndarray) -> np.ndarray:
        """Return 0 or 1 for each margin (...)."""
        return (margins > self.threshold).astype(int)

    def p_acceptable(self, margins: np.ndarray) -> np.ndarray:
        """Return the probability of "acceptable" for each margin (...)."""
        log_odds = self.slope * margins + self.intercept
        return 0.5 * (1 + np.tanh(log_odds / 2))  # which does not overflow

    def entries(self) -> dict[str, dict[str, float]]:
        """Return what config.json and metrics.json have of it, beside the rule."""
        if not self.thresholds:
            return {}
        calibration = {"slope": self.slope, "intercept": self.intercept}
        return {"thresholds": self.thresholds, "calibration": calibration}


SOFTMAX = Decision()


def margins_of(logits: Tensor) -> np.ndarray:
    """Return the margins (sentences,) of logits (sentences, 2) in fp64, which loses no bit."""
    return (logits[:, 1].double() - logits[:, 0].double()).numpy()
