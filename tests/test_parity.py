"""The whole training run against PEFT's, step by step: on nano's corpus always, on CoLA if here."""

import pytest
from conftest import NANO

from bench import parity


@pytest.fixture(autouse=True)
def batches_of_32(monkeypatch):
    """A quarter of the published size, and of the time."""
    monkeypatch.setattr(parity, "BATCH_SIZE", 32)


@pytest.mark.parametrize("corpus", ["nano", "CoLA"])
def test_thirty_steps_agree_with_peft(corpus, request):
    folder = NANO / "corpus" if corpus == "nano" else request.getfixturevalue("cola")
    losses, tensors = parity.compare_trajectories("nano", folder, steps=30)
    assert len(losses) == 30
    assert max(losses) < 1e-5
    assert max(tensors.values()) < 1e-3


def test_the_comparison_can_fail():
    losses, _ = parity.compare_trajectories("nano", NANO / "corpus", steps=3, lr_factor=1.01)
    assert max(losses) > 1e-5
