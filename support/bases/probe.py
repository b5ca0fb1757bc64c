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
    tokens = torch.tensor([5, 7, 9, 11, 6, 5, 7, 9, 8, 10]) % backbone.config.vocab_size
    split = Split([""] * 3, tokens, torch.tensor([0, 5, 9, 10]), torch.zeros(3, dtype=torch.long))
    batch = pack(split, np.arange(3))
    packed = classifier.outputs(batch).hidden_states[batch.last_tokens]  # (3, width)
    attention = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    sentences = tokens.split([5, 4, 1])
    alone = [backbone(s.unsqueeze(0), use_cache=False)[0][0, -1] for s in sentences]
    backbone.set_attn_implementation(attention)
    apart = (packed - torch.stack(alone)).norm() / packed.norm()
    if not apart < 1e-3:
        sinks = any("sink" in name for name, _ in backbone.named_parameters())
        reason = "it has attention sinks" if sinks else "packed sentences would not be judged alone"
        raise UserError(
            f"{folder}: {backbone.config.model_type} cannot be used here: {reason} (hidden states "
            f"differ by {apart:.0e})"
        )
