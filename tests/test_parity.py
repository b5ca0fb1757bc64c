"""The whole training run against PEFT's, step by step."""

import sys

from conftest import NANO

from data_utils import PROJECT

sys.path.insert(0, str(PROJECT / "bench"))
from parity import compare_trajectories


def test_thirty_steps_agree_with_peft_on_the_real_corpus(cola):
    losses, tensors = compare_trajectories(NANO, cola, steps=30)
    assert max(losses) < 1e-5
    assert max(tensors.values()) < 1e-3


def test_the_comparison_can_fail(cola):
    losses, _ = compare_trajectories(NANO, cola, steps=3, lr_factor=1.01)
    assert max(losses) > 1e-5
