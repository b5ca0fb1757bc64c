"""What does a teacher think at every token, and where is it kept?

Its final hidden states, each dimension standardised, as their leading principal components: these
carry most of the variance in a fraction of the numbers. They are computed once, a file a `CHUNK` of
tokens, in half precision, and read through a memory map, so that no set is too large.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from data_utils import Split
from support.devices import Device
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.fingerprints import fingerprint
from support.processes import any_process, sum_over_processes
from support.runs.locks import locked as hold

CHUNK = 45_000  # tokens a file; the components are those of the first one's states


class Basis(NamedTuple):
    """What turns states (tokens, width) into hints (tokens, hints)."""

    mean: Tensor  # (width,)
    directions: Tensor  # (width, hints)

    def hints_of(self, states: Tensor) -> Tensor:
        """Centre, scale, project."""
        return (states - self.mean) @ self.directions


class TeacherStates:
    """The hints (tokens, hints) of a split, as rows that are read when they are asked for."""

    def __init__(self, paths: list[Path]):
        """Map the files of consecutive sentences."""
        self.pieces = []
        for path in paths:
            with safe_open(path, framework="pt") as file:
                self.pieces.append(file.get_tensor("states"))
        self.bounds = torch.tensor([0, *(len(piece) for piece in self.pieces)]).cumsum(0)
        self.width = self.pieces[0].shape[1]
        self.fingerprint = fingerprint(*(path.name for path in paths))

    def __getitem__(self, tokens: Tensor) -> Tensor:
        """The hints of some tokens, in fp32."""
        found = torch.empty(len(tokens), self.width)
        which = torch.searchsorted(self.bounds, tokens, right=True) - 1
        for number in which.unique().tolist():
            inside = which == number
            found[inside] = self.pieces[number][tokens[inside] - self.bounds[number]].float()
        return found


@torch.no_grad()
def read_hints(
    split: Split, teacher: nn.Module, teacher_print: str, device: Device, width: int, folder: Path
) -> tuple[Tensor, TeacherStates]:
    """A teacher's logits (sentences, 2) and hints of a whole split, computed once.

    They are kept in ``folder`` under names that tell of which teacher and sentences they are, so
    that every run finds what another one computed. The basis is kept too: on another machine its
    directions may come out turned.
    """
    teacher.to(device.torch).eval()
    full = teacher.score.in_features
    hints, paths, logits, first = min(width, full), [], [], None
    parts = list(split.chunks(CHUNK))
    of_first = parts[0].fingerprint
    key = fingerprint(teacher_print, of_first, device.precision, str(hints))
    path = folder / f"basis_{key[:16]}.safetensors"
    with hold(path.with_suffix(".lock"), wait=True):
        shapes = {"mean": (full,), "directions": (full, hints)}
        found = saved_tensors(path, key, shapes)
        if found is None:
            first = read_part(teacher, parts[0], device, "teacher reads 1")
            write_tensors(path, principal_components(first["states"], hints), {"key": key})
            any_process(False)  # nobody reads before the main process has written
            found = saved_tensors(path, key, shapes)
        basis = Basis(**found)
        for number, part in enumerate(parts, start=1):
            part_key = fingerprint(key, *basis, part.fingerprint)
            paths.append(folder / f"teacher_{part_key[:16]}.safetensors")
            shapes = {"logits": (len(part), 2), "states": (len(part.input_ids), hints)}
            found = saved_tensors(paths[-1], part_key, shapes)
            if found is None:
                found = first or read_part(teacher, part, device, f"teacher reads {number}")
                found["states"] = basis.hints_of(found["states"]).half()
                write_tensors(paths[-1], found, {"key": part_key})
            logits.append(found["logits"])
            first = None
    return torch.cat(logits), TeacherStates(paths)


def saved_tensors(path: Path, key: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The tensors in a file, if every process finds them there with the key and the shapes."""
    found, metadata = {}, {}
    with suppress(UserError):
        found, metadata = read_tensors(path)
    have = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return None if any_process(metadata.get("key") != key or have != shapes) else found


def read_part(
    teacher: nn.Module, part: Split, device: Device, description: str
) -> dict[str, Tensor]:
    """The "logits" (sentences, 2), and the "states" (tokens, width)."""
    width = teacher.score.in_features
    logits, states = torch.zeros(len(part), 2), torch.zeros(len(part.input_ids), width)
    for batch in part.batches(device.torch, teacher.shares_prefixes, description):
        with device.autocast():
            judged, found, _ = teacher.read(batch)
        logits[batch.indices.cpu()] = judged.float().cpu()
        states[batch.places.cpu()] = found.float().cpu()
    sum_over_processes(logits, states)
    return {"logits": logits, "states": states}


def principal_components(rows: Tensor, width: int) -> dict[str, Tensor]:
    """A `Basis`: the ``width`` leading ones of rows (n, features), each feature standardised."""
    scaled = rows.to(torch.float64, copy=True)
    mean, deviation = scaled.mean(0), scaled.std(0, correction=0)
    deviation[deviation == 0] = 1  # what never changes is nothing to be met
    scaled.sub_(mean).div_(deviation)
    _, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))  # rising eigenvalues
    directions = directions.flip(1)[:, :width]
    # Scaled so that the mean square over the components is the share of the variance they keep.
    directions = directions / deviation.unsqueeze(1) * (directions.shape[1] / len(mean)) ** 0.5
    return {"mean": mean.float(), "directions": directions.float()}
