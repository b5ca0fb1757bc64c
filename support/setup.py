"""Set what holds for the whole process, once, before a mode runs."""

import os


def setup() -> None:
    """Set the environment that libraries read when they are loaded, and load PyTorch."""
    # OpenMP's threads spin while they wait; beside another busy program one of them may spin on the
    # processor that the other one wants.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    # PyTorch's x86 builds leave these two functions to oneMKL, which settles on a kernel in the
    # first call. Where several threads make that call together, one of them may run a coarse kernel
    # in it, its results 1e-4 off (https://github.com/pytorch/pytorch/issues/188792). One element is
    # one thread's. tanh is the RNN's and the GELU's of Hugging Face, exp the KL divergence's.
    torch.tanh(torch.zeros(1))
    torch.exp(torch.zeros(1))
