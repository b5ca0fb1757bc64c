"""Ask a teacher once for its logits and its hints, and save them.

Hints are the leading principal components of its final hidden states, each dimension standardised:
they carry most of the variance in a fraction of the numbers.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_utils import Split
from support.devices import Device
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.fingerprints import corpus_fingerprint, fingerprint
from support.processes import any_process, barrier, is_main, sum_over_processes
from support.progress import progress_bar
from support.runs.locks import locked

CHUNK = 45_000  # tokens a file with hints; the principal components are those of the first one's


@torch.no_grad()
def teacher_answers(
    split: Split, teacher: nn.Module, teacher_key: str, device: Device, width: int, folder: Path
) -> Split:
    """Return a split with a teacher's logits and ``width`` hints a token, none where it is 0.

    The teacher is frozen: one pass serves all epochs. What it answers is saved in ``folder`` for
    every other run, under names that tell the teacher (its fingerprint is ``teacher_key``) and the
    sentences. With hints there is a file for each `CHUNK` of tokens, so that a pass which was
    interrupted goes on from there, and each has the mean and the components of its hints.
    """
    teacher.eval()
    full = teacher.score.in_features
    width = min(width, full)
    key = fingerprint(teacher_key, device.precision, str(width))
    parts, answers, basis = list(split.chunks(CHUNK)) if width else [split], [], ()
    bar = progress_bar("teacher reads sentence", len(split))
    with bar, locked(folder / f"teacher_{key[:16]}.lock", wait=True):
        for part in parts:
            name = fingerprint(key, corpus_fingerprint({"": part}), *basis)[:16]
            path = folder / f"teacher_{name}.safetensors"
            shapes = {"logits": (len(part), 2)}
            if width:
                shapes |= {"hints": (len(part.input_ids), width), "mean": (full,)}
                shapes["components"] = (full, width)
            found: dict[str, Tensor] = {}
            with suppress(UserError):  # missing or broken
                found, _ = read_tensors(path)
            if any_process({name: tuple(t.shape) for name, t in found.items()} != shapes):
                logits, states = read(teacher, part, device, width > 0, bar)
                tensors = {"logits": logits}
                if width:
                    mean, components = basis or principal_components(states, width)
                    components = components.contiguous()  # as from a file, for the same last bits
                    hints = ((states - mean) @ components).half()
                    tensors |= {"hints": hints, "mean": mean, "components": components}
                write_tensors(path, tensors, {})
                barrier()
                # In all processes the main one's: elsewhere the components may come out turned.
                found, _ = read_tensors(path)
            answers.append(found)
            # Those of other processes, or all where the file was there.
            bar.update(sum(len(part["logits"]) for part in answers) - bar.n)
            if width:
                basis = found["mean"], found["components"]
    return replace(
        split,
        teacher_logits=torch.cat([part["logits"] for part in answers]),
        hints=torch.cat([part["hints"] for part in answers]) if width else None,
    )


def read(
    teacher: nn.Module, part: Split, device: Device, with_states: bool, bar: tqdm
) -> tuple[Tensor, Tensor]:
    """Return a teacher's logits (sentences, 2) and its final hidden states (tokens, width).

    Without states, which are empty then, a teacher may take less time.
    """
    logits = torch.zeros(len(part), 2)
    states = torch.zeros(len(part.input_ids) if with_states else 0, teacher.score.in_features)
    for batch in part.batches(device.torch):
        with device.autocast():
            if with_states:
                found, hidden_states, _ = teacher.outputs(batch)
                states[batch.token_indices.cpu()] = hidden_states.float().cpu()
            else:
                found = teacher(batch)
        logits[batch.indices.cpu()] = found.float().cpu()
        bar.update(len(batch.labels))
    sum_over_processes(logits, states)
    return logits, states


def leading_components(rows: Tensor, width: int) -> Tensor:
    """Return rows (n, features) in their principal components, ``width`` or as many as there are.

    Of several processes all get the main one's: elsewhere the components may come out turned.
    """
    rows = rows.float().cpu()
    mean, components = principal_components(rows, width)
    projected = (rows - mean) @ components
    if not is_main():
        projected.zero_()
    sum_over_processes(projected)
    return projected


def principal_components(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the mean (features,) and the leading components (features, width) of rows.

    Rows (n, features) are standardised first. The components are scaled so that the mean square
    over the projected numbers is the share of the variance that they keep.
    """
    scaled = rows.to(torch.float64, copy=True)
    mean, deviation = scaled.mean(0), scaled.std(0, correction=0)
    deviation[deviation == 0] = 1  # what never changes has no component
    scaled.sub_(mean).div_(deviation)
    _, components = torch.linalg.eigh(scaled.T @ scaled / len(scaled))  # rising eigenvalues
    components = components.flip(1)[:, :width]
    share = components.shape[1] / len(mean)
    components = components / deviation.unsqueeze(1) * share**0.5
    return mean.float(), components.float()
