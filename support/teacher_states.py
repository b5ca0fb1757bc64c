"""What does a teacher think at every token, and where is it kept?

Its final hidden states, each dimension standardised, as their leading principal components: these
carry most of the variance in a fraction of the numbers. They are computed once, a file a `CHUNK` of
sentences, in half precision, and read through a memory map, so that no set is too large.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from data_utils import Split, corpus_fingerprint
from support.devices import Device
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.fingerprints import fingerprint
from support.locks import hold
from support.processes import any_process, sum_over_processes
from train_utils import pieces_of

CHUNK = 8192  # sentences a file
SAMPLE = 2048  # of the first sentences, from which the components are found


class Basis(NamedTuple):
    """What turns states (tokens, width) into hints (tokens, hints)."""

    mean: Tensor  # (width,)
    directions: Tensor  # (width, hints)

    def hints_of(self, states: Tensor) -> Tensor:
        """Centre, scale, project."""
        return (states.float() - self.mean.to(states.device)) @ self.directions.to(states.device)


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
def read_states(
    split: Split, teacher: nn.Module, teacher_print: str, device: Device, width: int, folder: Path
) -> tuple[Tensor, TeacherStates]:
    """A teacher's logits (sentences, 2) and hints of a whole split, computed once.

    They are kept in ``folder`` under names that tell of which teacher and sentences they are, so
    that every run finds what another one computed. The basis is kept too: on another machine its
    directions may come out turned.
    """
    teacher.to(device.torch).eval()
    sample, paths, logits = split.part(0, SAMPLE), [], []
    full = teacher.score.in_features
    hints = min(width, full)
    key = fingerprint(teacher_print, corpus_fingerprint({"": sample}), device.precision, str(width))
    with hold(folder / "teacher.lock"):
        path = folder / f"basis_{key[:16]}.safetensors"
        shapes = {"mean": (full,), "directions": (full, hints)}
        found = kept(path, key, shapes)
        if found is None:
            write_tensors(path, find_basis(teacher, sample, device, hints), {"key": key})
            any_process(False)  # nobody reads before the main process has written
            found = kept(path, key, shapes)
        basis = Basis(**found)
        for number, start in enumerate(range(0, len(split), CHUNK), start=1):
            part = split.part(start, start + CHUNK)
            part_key = fingerprint(key, *basis, corpus_fingerprint({"": part}))
            paths.append(folder / f"teacher_{part_key[:16]}.safetensors")
            shapes = {"logits": (len(part), 2), "states": (len(part.input_ids), hints)}
            found = kept(paths[-1], part_key, shapes)
            if found is None:
                found = read_part(teacher, part, device, basis, f"teacher reads {number}")
                found["states"] = found["states"].half()
                write_tensors(paths[-1], found, {"key": part_key})
            logits.append(found["logits"])
    return torch.cat(logits), TeacherStates(paths)


def kept(path: Path, key: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The tensors in a file, if every process finds them there with the key and the shapes."""
    found, metadata = {}, {}
    with suppress(UserError):
        found, metadata = read_tensors(path)
    have = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return None if any_process(metadata.get("key") != key or have != shapes) else found


def read_part(
    teacher: nn.Module, part: Split, device: Device, basis: Basis | None, description: str | None
) -> dict[str, Tensor]:
    """The "logits" (sentences, 2), and as "states" hints (tokens, hints).

    Without a basis they are the teacher's states (tokens, width).
    """
    width = teacher.score.in_features if basis is None else basis.directions.shape[1]
    logits, states = torch.zeros(len(part), 2), torch.zeros(len(part.input_ids), width)
    for batch in pieces_of(teacher, part, device, description):
        with device.autocast():
            judged, found = teacher.read(batch)
        found = (found.float() if basis is None else basis.hints_of(found)).cpu()
        logits[batch.indices.cpu()] = judged.float().cpu()
        starts = part.cu_seqlens[batch.indices.cpu()]
        lengths = batch.cu_seqlens.diff().cpu()
        states[torch.repeat_interleave(starts, lengths) + batch.position_ids.cpu()] = found
    sum_over_processes(logits, states)
    return {"logits": logits, "states": states}


def find_basis(teacher: nn.Module, sample: Split, device: Device, hints: int) -> dict[str, Tensor]:
    """The `Basis` of the states over a sample's tokens."""
    return principal_components(read_part(teacher, sample, device, None, None)["states"], hints)


def principal_components(rows: Tensor, width: int) -> dict[str, Tensor]:
    """A `Basis`: the ``width`` leading ones of rows (n, features), each feature standardised."""
    mean, deviation = rows.double().mean(0), rows.double().std(0, correction=0)
    deviation[deviation == 0] = 1  # what never changes is nothing to be met
    scaled = (rows.double() - mean) / deviation
    _, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))  # rising eigenvalues
    directions = directions.flip(1)[:, :width]
    # Scaled so that the mean square over the components is the share of the variance they keep.
    directions = directions / deviation.unsqueeze(1) * (directions.shape[1] / len(mean)) ** 0.5
    return {"mean": mean.float(), "directions": directions.float()}
