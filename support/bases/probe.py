"""Prove that a loaded model reads packed sentences as it reads each alone."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_utils import Split, pack
from support.errors import UserError


@torch.no_grad()
def check_packing(classifier: nn.Module, folder: Path) -> None:
    """Compare the states of three packed sentences with those that the model's own attention gives.

    Whatever differs in the mechanism differs here: attention to later tokens or to sinks, scores
    that are biased, states that leak from one sentence into the next.
    """
    backbone = classifier.backbone
    size = backbone.config.vocab_size
    sentences = [[token % size for token in ids] for ids in ([5, 7, 9, 11, 6], [5, 7, 9, 8], [10])]
    bounds = torch.tensor(np.cumsum([0, *map(len, sentences)]))
    tokens = torch.tensor([token for ids in sentences for token in ids])
    batch = pack(Split([""] * 3, tokens, bounds, torch.zeros(3, dtype=torch.long)), np.arange(3))
    packed = classifier.read(batch).states[batch.last_tokens]  # (3, width)
    backbone.set_attn_implementation("eager")
    alone = [backbone(torch.tensor([ids]), use_cache=False)[0][0, -1] for ids in sentences]
    backbone.set_attn_implementation("packed")
    apart = (packed - torch.stack(alone)).norm() / packed.norm()
    if not apart < 1e-3:
        sinks = any("sink" in name for name, _ in backbone.named_parameters())
        reason = "it has attention sinks" if sinks else "packed sentences would not be judged alone"
        raise UserError(
            f"{folder}: {backbone.config.model_type} cannot be used here: {reason} (hidden states "
            f"differ by {apart:.0e})"
        )
