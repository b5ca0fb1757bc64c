"""Fetch a base from the Hugging Face hub, once."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from support.bases.finding import TOKENIZER_FILES, WEIGHTS, check_folder
from support.errors import UserError, first_line

HUB_TIMEOUT = 5  # seconds until an unreachable hub is reported


def from_hub(repo: str, weights: bool) -> Path:
    """Return a base's folder; asks the hub nothing when the local cache has all that is needed.

    Of several processes one fetches: the library locks each file.
    """
    patterns = [
        "config.json",
        *TOKENIZER_FILES,
        *(("*.safetensors", WEIGHTS[1]) if weights else ()),
    ]
    try:
        local = huggingface_hub.snapshot_download(
            repo, allow_patterns=patterns, local_files_only=True
        )
        return check_folder(Path(local), weights)
    except (LocalEntryNotFoundError, HFValidationError, UserError):
        pass
    if not sys.stderr.isatty():  # piped output stays clean
        huggingface_hub.utils.disable_progress_bars()
    try:
        # Asked once and briefly, since a download tries an unreachable hub for a minute.
        probe = huggingface_hub.hf_hub_url(repo, "config.json")
        huggingface_hub.get_hf_file_metadata(probe, timeout=HUB_TIMEOUT)
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except GatedRepoError:
        reason = "its owners ask for an agreement: accept it on the hub, then `hf auth login`"
    except (HTTPError, EntryNotFoundError, OfflineModeIsEnabled, HFValidationError) as error:
        reason = first_line(error)
    raise UserError(
        f"--gpt_variant {repo}: not in the local cache, and the Hugging Face hub did not give "
        f"it ({reason}); pass a local folder in Hugging Face format, or use --gpt_variant nano, "
        "which ships with the project"
    )
