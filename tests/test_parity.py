"""The whole training run against PEFT's, step by step."""

import pytest

from bench import parity


@pytest.fixture(autouse=True)
def batches_of_32(monkeypatch):
    """A quarter of the published size, and of the time."""
    monkeypatch.setattr(parity, "BATCH_SIZE", 32)


def test_thirty_steps_agree_with_peft_on_the_real_corpus(cola):
    losses, tensors = parity.compare_trajectories("nano", cola, steps=30)
    assert len(losses) == 30
    assert max(losses) < 1e-5
    assert max(tensors.values()) < 1e-3


def test_the_comparison_can_fail(cola):
    losses, _ = parity.compare_trajectories("nano", cola, steps=3, lr_factor=1.01)
    assert max(losses) > 1e-5
