"""Read files, and replace them whole or not at all.

Nothing is ever unpickled: weights are safetensors, the rest is JSON, CSV and text. Of several
processes only the main one writes, but for what every machine needs (`replace_file`).
"""

import csv
import io
import json
import os
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from support.errors import UserError
from support.processes import is_main

# ---------------------------------------------------------------------------------------------
# Writing


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in the main process."""
    if is_main():
        replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """Write beside the file, fsync, rename: a crash leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):  # it is not there, or cannot be
            partial.unlink()


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error for a full disk, a folder without permission, and the like."""
    reason = error.strerror or error
    return UserError(f"{path}: cannot be written ({reason}); what was saved before is whole")


def no_folder(folder: Path, error: OSError) -> UserError:
    """Return the error for a folder that cannot be made or locked."""
    return UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out_dir")


def write_json(path: Path, value: dict) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write CSV atomically; floats with every digit, so that reading gives the same bits back.

    The last row has every column: a history that an earlier version began may have fewer in others.
    """
    table = csv.DictWriter(text := io.StringIO(), rows[-1], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors atomically.

    The library writes several entries of metadata in no fixed order: one gives the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(tensors, metadata or {"format": "pt"}))


# ---------------------------------------------------------------------------------------------
# Reading


def read_bytes(path: Path) -> bytes:
    """Read a whole file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> dict:
    """Read a JSON object."""
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); delete it or restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; delete it or restore it")
    return value


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read safetensors and their metadata."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            # Copied, since the file may be replaced while a mapped tensor still points into it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: truncated or not a safetensors file ({error}); restore it or train again "
            "with --overwrite"
        ) from None


def copy_tensors(path: Path, source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy ``source``, which ``path`` holds, into ``target`` in place: equal names and shapes."""
    for name in sorted(source.keys() | target.keys()):
        if name not in source:
            raise UserError(f"{path}: tensor {name} is missing; the file belongs to another model")
        if name not in target:
            raise UserError(f"{path}: tensor {name} has no place in this model")
        if source[name].shape != target[name].shape:
            raise UserError(
                f"{path}: tensor {name} is {tuple(source[name].shape)} where the model has "
                f"{tuple(target[name].shape)}; the file belongs to another model"
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
