"""Fetch CoLA's archive, and take from it what has the published checksum."""

import hashlib
import http.client
import io
import math
import urllib.request
import zipfile
from functools import partial
from itertools import islice
from pathlib import Path

import filelock

from support.errors import UserError
from support.files import replace_file
from support.progress import progress_bar

URL = "https://nyu-mll.github.io/CoLA/cola_public_1.1.zip"
PIECE = 1 << 10  # bytes
LIMIT = 1 << 26  # bytes of the archive, and of a file in it; CoLA's largest has 0.5 MB
TIMEOUT = 20  # seconds without an answer
BY_HAND = f"download {URL} yourself, unpack it and pass the folder as --data_dir"


def fetch_cola(folder: Path, sha256: dict[str, str]) -> None:
    """Put CoLA's three raw files into ``folder/raw``, unless they are there.

    Every process of every machine may call this: one of those that share the folder fetches, the
    others wait for it. Only the three named members are read, and nothing is written unless all
    have their checksum.
    """
    raw = folder / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(raw / ".lock")
        lock.acquire()
    except OSError as error:
        raise UserError(f"{raw}: cannot be written ({error.strerror}); {BY_HAND}") from None
    try:
        if not all((raw / f"{split}.tsv").exists() for split in sha256):
            for split, content in published_files(URL, sha256).items():
                replace_file(raw / f"{split}.tsv", content)
    finally:
        lock.release()


def published_files(url: str, sha256: dict[str, str]) -> dict[str, bytes]:
    """Download the archive and return the content of each split's file."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            pieces = islice(iter(partial(answer.read, PIECE), b""), LIMIT // PIECE)
            size = math.ceil((answer.length or 0) / PIECE)  # 0 where the server does not tell
            content = b"".join(progress_bar("fetching CoLA, KiB", size, iterable=pieces))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot be downloaded ({reason}); {BY_HAND}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {split: archive.open(f"cola_public/raw/{split}.tsv") for split in sha256}
            files = {split: member.read(LIMIT) for split, member in members.items()}
    except Exception as error:  # zipfile raises a dozen kinds for a broken archive
        raise UserError(f"{url}: not CoLA's archive ({error!r}); {BY_HAND}") from None
    for split, content in files.items():
        if hashlib.sha256(content).hexdigest() != sha256[split]:
            raise UserError(f"{url}: {split}.tsv has the wrong checksum; {BY_HAND}")
    return files
