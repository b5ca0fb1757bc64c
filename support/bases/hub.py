"""Fetch a base from the Hugging Face hub, once."""

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors, utils

from support.bases.loading import check_folder
from support.errors import UserError, first_line

TIMEOUT = 5  # seconds until an unreachable hub is reported
CONFIGURATION = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "tokenizer.model",
]  # fmt: skip
WEIGHT_FILES = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def from_hub(repo: str, weights: bool) -> Path:
    """Return a base's folder; the hub is asked nothing when the local cache has all of it.

    Of several processes one fetches each file, and the library has the others wait for it.
    """
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    patterns = CONFIGURATION + (WEIGHT_FILES if weights else [])
    snapshot = partial(huggingface_hub.snapshot_download, repo, allow_patterns=patterns)
    try:
        with suppress(errors.LocalEntryNotFoundError, UserError):
            return check_folder(Path(snapshot(local_files_only=True)), weights)
        # Asked once and briefly, since a download tries an unreachable hub for a minute.
        url = huggingface_hub.hf_hub_url(repo, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
        return check_folder(Path(snapshot()), weights)
    except errors.GatedRepoError:
        reason = "its owners ask for an agreement: accept it on the hub, then `hf auth login`"
    except (
        errors.HTTPError, errors.EntryNotFoundError, errors.OfflineModeIsEnabled,
        errors.HFValidationError,
    ) as error:  # fmt: skip
        reason = first_line(error)
    raise UserError(
        f"--gpt_variant {repo}: not in the local cache, and the Hugging Face hub did not give "
        f"it ({reason}); pass a local folder in Hugging Face format, or use --gpt_variant nano, "
        "which ships with the project"
    )
