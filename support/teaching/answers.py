"""Ask a teacher once for its logits and its hints, and save them.

Hints are the leading principal components of its final hidden states, each dimension standardised:
they carry most of the variance in a fraction of the numbers. They are saved in half precision, a
file for each `CHUNK` of tokens, and read through a memory map, so that no set is too large.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data_utils import Split
from support.devices import Device
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.fingerprints import fingerprint
from support.processes import any_process, barrier, broadcast, sum_over_processes
from support.runs.locks import locked

CHUNK = 45_000  # tokens a file; the components are those of the first one's states


class Basis(NamedTuple):
    """A projection of states (tokens, width) to hints (tokens, hints)."""

    mean: Tensor  # (width,)
    directions: Tensor  # (width, hints)

    def hints_of(self, states: Tensor) -> Tensor:
        """Centre the states, scale them, and project them."""
        return (states - self.mean) @ self.directions


class TeacherStates:
    """Hints (tokens, hints) of a split, whose rows are read when they are asked for."""

    def __init__(self, paths: list[Path]):
        """Map the files of consecutive sentences."""
        self.pieces = [load_file(path)["states"] for path in paths]
        self.bounds = torch.tensor([0, *(len(piece) for piece in self.pieces)]).cumsum(0)
        self.width = self.pieces[0].shape[1]
        self.fingerprint = fingerprint(*(path.name for path in paths))

    def __getitem__(self, tokens: Tensor) -> Tensor:
        """Return the hints of some tokens, in fp32."""
        rows = torch.empty(len(tokens), self.width)
        which = torch.searchsorted(self.bounds, tokens, right=True) - 1
        for number in which.unique().tolist():
            inside = which == number
            rows[inside] = self.pieces[number][tokens[inside] - self.bounds[number]].float()
        return rows


@torch.no_grad()
def read_hints(
    split: Split, teacher: nn.Module, teacher_key: str, device: Device, width: int, folder: Path
) -> tuple[Tensor, TeacherStates]:
    """Return a teacher's logits (sentences, 2) and ``width`` hints a token of a whole split.

    They are saved in ``folder`` for every other run, under names that tell the teacher (its
    fingerprint is ``teacher_key``) and the sentences. The basis is saved too: on another machine
    its directions may come out turned.
    """
    teacher.eval()
    full, parts, reading = teacher.score.in_features, list(split.chunks(CHUNK)), None
    width, logits, paths, first = min(width, full), [], [], parts[0]
    key = fingerprint(teacher_key, first.fingerprint, device.precision, str(width))
    path = folder / f"basis_{key[:16]}.safetensors"
    with locked(path.with_suffix(".lock"), wait=True):
        shapes = {"mean": (full,), "directions": (full, width)}
        if saved_tensors(path, key, shapes) is None:
            reading = read_part(teacher, first, device, f"1 of {len(parts)}")
            write_tensors(path, principal_components(reading["states"], width), {"key": key})
            barrier()
        basis = Basis(**saved_tensors(path, key, shapes))
        for number, part in enumerate(parts, start=1):
            part_key = fingerprint(key, *basis, part.fingerprint)
            paths.append(folder / f"teacher_{part_key[:16]}.safetensors")
            shapes = {"logits": (len(part), 2), "states": (len(part.input_ids), width)}
            answers = saved_tensors(paths[-1], part_key, shapes)
            if answers is None:
                which = f"{number} of {len(parts)}"
                answers = reading or read_part(teacher, part, device, which)
                answers["states"] = basis.hints_of(answers["states"]).half()
                write_tensors(paths[-1], answers, {"key": part_key})
            logits.append(answers["logits"])
            reading = None  # it was the first part's
    return torch.cat(logits), TeacherStates(paths)


def read_part(teacher: nn.Module, part: Split, device: Device, which: str) -> dict[str, Tensor]:
    """Return a part's "logits" (sentences, 2) and "states" (tokens, width); ``which`` is shown."""
    logits = torch.zeros(len(part), 2)
    states = torch.zeros(len(part.input_ids), teacher.score.in_features)
    for batch in part.batches(device.torch, f"teacher reads part {which}"):
        with device.autocast():
            outputs = teacher.outputs(batch)
        logits[batch.indices.cpu()] = outputs.logits.float().cpu()
        states[batch.token_indices.cpu()] = outputs.hidden_states.float().cpu()
    sum_over_processes(logits, states)
    return {"logits": logits, "states": states}


def leading_components(rows: Tensor, width: int) -> Tensor:
    """Return rows (n, features) in their principal components, ``width`` or as many as there are.

    Of several processes all get the main one's: elsewhere the components may come out turned.
    """
    rows = rows.float().cpu()
    components = Basis(**principal_components(rows, width)).hints_of(rows)
    broadcast(components)
    return components


def saved_tensors(
    path: Path, key: str, shapes: dict[str, tuple[int, ...]]
) -> dict[str, Tensor] | None:
    """Return a file's tensors, if every process reads them there with the key and the shapes."""
    tensors, metadata = {}, {}
    with suppress(UserError):
        tensors, metadata = read_tensors(path)
    have = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return None if any_process(metadata.get("key") != key or have != shapes) else tensors


def principal_components(rows: Tensor, width: int) -> dict[str, Tensor]:
    """Return a `Basis` of the ``width`` leading components of rows (n, features), standardised."""
    scaled = rows.to(torch.float64, copy=True)
    mean, deviation = scaled.mean(0), scaled.std(0, correction=0)
    deviation[deviation == 0] = 1  # what never changes has no component
    scaled.sub_(mean).div_(deviation)
    _, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))  # rising eigenvalues
    directions = directions.flip(1)[:, :width]
    # Scaled so that the mean square over the components is the share of the variance they keep.
    directions = directions / deviation.unsqueeze(1) * (directions.shape[1] / len(mean)) ** 0.5
    return {"mean": mean.float(), "directions": directions.float()}
