"""CoLA files -> token ids -> packed batches.

A batch has no padding: the sentences' tokens are laid end to end, as in the variable-length
interface of FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135):

    sentences      "It rained ."  "We ate ."  "Go ."
    input_ids      [ 1026 13996 13 |  1135 15063 13 |  5247 13 ]     (tokens,)
    position_ids   [    0     1  2 |     0     1  2 |     0  1 ]     (tokens,)
    cu_seqlens     [ 0               3               6         8 ]   (sentences + 1,)
    labels         [ 1               1               1 ]             (sentences,)

The corpus is CoLA, the Corpus of Linguistic Acceptability (Warstadt, Singh and Bowman 2019,
https://arxiv.org/abs/1805.12471), or any folder in its layout.
"""

import hashlib
import http.client
import io
import os
import shutil
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent
SPLITS = ("in_domain_train", "in_domain_dev", "out_of_domain_dev")
TRAIN, DEV, OUT_OF_DOMAIN = SPLITS
UNLABELLED = -100  # torch.nn.functional.cross_entropy's ignore_index

COLA_DIR = PROJECT / "cola_public"
COLA_URL = "https://nyu-mll.github.io/CoLA/cola_public_1.1.zip"
COLA_SHA256 = {
    TRAIN: "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
    DEV: "77176f6a03faa5a1c4f23c69971fc1bff565931112fb65af47b2d6e24b7f42f7",
    OUT_OF_DOMAIN: "201b9c57b2a20f1282242eec0ed8995729e3be19c29a46c047b3727338836c05",
}


DOWNLOAD_LIMIT = 1 << 26  # bytes; CoLA's archive has 0.25 MB


class UserError(Exception):
    """What the user can mend: one line that says what is wrong, where, and what to do."""


# ---------------------------------------------------------------------------------------------
# Reading


def read_split(path: Path) -> tuple[list[str], list[int]]:
    """Read one file in CoLA's format into its sentences and their labels.

    Four tab-separated columns (source code, label, the author's own mark, sentence), no header,
    no quoting, UTF-8, with or without a newline at the end.

    Raises:
        UserError: naming the file and the line, when the file is not of that form.
    """
    sentences, labels = [], []
    lines = read_bytes(path).split(b"\n")  # str.splitlines would also break at U+2028 and others
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty; CoLA's format has one sentence a line")
    for number, raw in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            columns = raw.decode("utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: byte {error.start + 1} is not UTF-8; convert it") from None
        if len(columns) != 4:
            raise UserError(
                f"{where}: {len(columns)} tab-separated columns where CoLA has 4 "
                "(source, label, author's mark, sentence)"
            )
        if columns[1] not in ("0", "1"):
            raise UserError(f"{where}: the label is {columns[1]!r}; it must be 0 or 1")
        if not columns[3].strip():
            raise UserError(f"{where}: the sentence is empty; remove the line")
        sentences.append(columns[3])
        labels.append(int(columns[1]))
    return sentences, labels


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        UserError: where there is no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def find_corpus(data_dir: Path) -> Path:
    """Return ``data_dir``, having fetched and checked it if it is the project's own CoLA folder.

    Raises:
        UserError: where the folder is missing, or the project's own copy is not CoLA's.
    """
    if data_dir.resolve() == COLA_DIR:
        if not COLA_DIR.exists():
            fetch_cola(COLA_DIR)
        for split, sha256 in COLA_SHA256.items():
            path = COLA_DIR / "raw" / f"{split}.tsv"
            if hashlib.sha256(read_bytes(path)).hexdigest() != sha256:
                raise UserError(f"{path}: not the published file; delete {COLA_DIR} and run again")
    elif not data_dir.is_dir():
        raise UserError(
            f"--data_dir {data_dir}: no such folder; it must hold raw/{TRAIN}.tsv, "
            f"raw/{DEV}.tsv and raw/{OUT_OF_DOMAIN}.tsv in CoLA's layout"
        )
    return data_dir


def fetch_cola(folder: Path, url: str = COLA_URL, sha256: dict[str, str] = COLA_SHA256) -> None:
    """Download CoLA's archive and put its three raw files into ``folder/raw``, whole or not at all.

    Only the three named members are read and nothing else is written, whatever the archive holds.

    Raises:
        UserError: where the site does not answer or the files are not the published ones.
    """
    remedy = f"download {url} yourself, unpack it and pass the folder as --data_dir"
    try:
        archive = zipfile.ZipFile(io.BytesIO(_download(url)))
        members = {split: archive.getinfo(f"cola_public/raw/{split}.tsv") for split in SPLITS}
        for member in members.values():
            if member.file_size > DOWNLOAD_LIMIT:
                raise ValueError(f"a file of more than {DOWNLOAD_LIMIT >> 20} MiB in it")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("a compression that the published archive does not use")
        files = {split: archive.read(member) for split, member in members.items()}
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot be downloaded ({reason}); {remedy}") from None
    except (
        zipfile.BadZipFile, zlib.error, EOFError, LookupError, ValueError, RuntimeError
    ) as error:  # fmt: skip
        raise UserError(f"{url}: not CoLA's archive ({error!r}); {remedy}") from None
    for split, content in files.items():
        if hashlib.sha256(content).hexdigest() != sha256[split]:
            raise UserError(f"{url}: {split}.tsv has the wrong checksum; {remedy}")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        (partial / "raw").mkdir(parents=True)
        for split, content in files.items():
            (partial / "raw" / f"{split}.tsv").write_bytes(content)
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        size = int(response.headers.get("Content-Length", 0))
        content = bytearray()
        with tqdm(desc="CoLA", total=size or None, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(1 << 16):
                content += chunk
                bar.update(len(chunk))
                if len(content) > DOWNLOAD_LIMIT:
                    raise OSError(f"more than {DOWNLOAD_LIMIT >> 20} MiB came")
    if len(content) < size:
        raise OSError(f"cut off after {len(content)} of {size} bytes")
    return bytes(content)


# ---------------------------------------------------------------------------------------------
# Tokenising


@dataclass
class Split:
    """One tokenised file: ``input_ids (tokens,)``, ``cu_seqlens (sentences + 1,)``,
    ``labels (sentences,)`` with ``UNLABELLED`` where nobody judged the sentence, and, once a
    teacher has read it, ``teacher_logits (sentences, 2)``. All on the CPU.
    """

    sentences: list[str]
    input_ids: Tensor
    cu_seqlens: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def seqlens(self) -> np.ndarray:
        """Tokens of each sentence, (sentences,)."""
        return np.diff(self.cu_seqlens.numpy())

    def counts(self) -> dict[str, int]:
        """How many sentences, tokens and acceptable sentences there are."""
        return {
            "sentences": len(self),
            "tokens": len(self.input_ids),
            "acceptable": int((self.labels == 1).sum()),
        }


def tokenize(
    tokenizer, sentences: Sequence[str], labels: Sequence[int], max_length: int, source: str
) -> Split:
    """Tokenise sentences, without special tokens and without cutting any short.

    Args:
        tokenizer: a Hugging Face tokenizer.
        sentences: the sentences, each giving at least one token.
        labels: 0, 1 or ``UNLABELLED`` for each sentence.
        max_length: the model's number of positions.
        source: where the sentences come from, for the error message.

    Raises:
        UserError: naming the line, when a sentence is longer than ``max_length`` tokens.
    """
    token_ids = tokenizer(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]
    for number, ids in enumerate(token_ids, start=1):
        if not 0 < len(ids) <= max_length:
            raise UserError(
                f"{source}, line {number}: {len(ids)} tokens, where the model takes 1 to "
                f"{max_length}; shorten the sentence"
            )
    return Split(
        sentences=list(sentences),
        input_ids=torch.tensor([token for ids in token_ids for token in ids]),
        cu_seqlens=torch.tensor(np.cumsum([0] + [len(ids) for ids in token_ids])),
        labels=torch.tensor(labels),
    )


def load_corpus(data_dir: Path, tokenizer, max_length: int) -> dict[str, Split]:
    """Read, check and tokenise the three files of a corpus in CoLA's layout, by split name.

    Raises:
        UserError: as `find_corpus`, `read_split` and `tokenize` do.
    """
    raw = find_corpus(data_dir) / "raw"
    paths = {split: raw / f"{split}.tsv" for split in SPLITS}
    return {
        split: tokenize(tokenizer, *read_split(path), max_length, str(path))
        for split, path in paths.items()
    }


def fingerprint(*parts: Tensor | str | bytes) -> str:
    """SHA-256 over tensors (shape, type and bytes) and strings: the same content, the same name."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            # Viewed as bytes, since NumPy has no bfloat16.
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def corpus_fingerprint(corpus: dict[str, Split]) -> str:
    """Fingerprint of the token ids and labels: of the data and of the tokenizer's view of them."""
    return fingerprint(*(t for s in corpus.values() for t in (s.input_ids, s.cu_seqlens, s.labels)))


# ---------------------------------------------------------------------------------------------
# Packing


class Batch(NamedTuple):
    """Sentences packed end to end, longest first.

    Longest first puts sentences of equal length side by side, so that attention can view each
    such run as a dense block (model.py), and it is the order that ``nn.RNN`` wants.

    In a causal model what is computed at a token depends on the tokens up to it, its prefix, and
    on nothing else: equal beginnings are computed once. ``places`` has one token for each distinct
    prefix, and ``prefixes`` says for every token which of them is its own. "She sat ." and
    "She slept ." give places [0 1 2 4 5] and prefixes [0 1 2 0 3 4].
    """

    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (tokens,)
    cu_seqlens: Tensor  # (sentences + 1,)
    labels: Tensor  # (sentences,)
    indices: Tensor  # (sentences,)  which sentence of the split each one is
    teacher_logits: Tensor | None  # (sentences, 2)
    places: Tensor  # (distinct prefixes,)
    prefixes: Tensor  # (tokens,)
    runs: tuple[tuple[int, int], ...]  # (length, sentences) of each run, on the host

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on ``device``."""
        return Batch(*(x.to(device) if isinstance(x, Tensor) else x for x in self))


def pack(split: Split, indices: np.ndarray) -> Batch:
    """Pack the sentences ``indices (sentences,)`` of a split into one batch."""
    seqlens = split.seqlens
    indices = indices[np.argsort(-seqlens[indices], kind="stable")]
    lengths = seqlens[indices]  # (sentences,), falling
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    position_ids = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    starts = split.cu_seqlens.numpy()[indices]
    chosen = torch.from_numpy(indices)
    input_ids = split.input_ids[torch.from_numpy(np.repeat(starts, lengths) + position_ids)]
    places, prefixes = distinct_prefixes(input_ids.tolist(), position_ids.tolist())
    return Batch(
        input_ids=input_ids,
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        labels=split.labels[chosen],
        indices=chosen,
        teacher_logits=None if split.teacher_logits is None else split.teacher_logits[chosen],
        places=torch.tensor(places),
        prefixes=torch.tensor(prefixes),
        runs=tuple((length, len(list(run))) for length, run in groupby(lengths.tolist())),
    )


def distinct_prefixes(input_ids: list[int], position_ids: list[int]) -> tuple[list, list]:
    """``Batch.places`` and ``Batch.prefixes`` of packed tokens."""
    known: dict[tuple[int, int], int] = {}  # (the prefix before, the token) -> the prefix
    places, prefixes = [], []
    for place, (token, position) in enumerate(zip(input_ids, position_ids, strict=True)):
        before = prefixes[-1] if position else -1
        prefixes.append(known.setdefault((before, token), len(known)))
        if len(known) > len(places):
            places.append(place)
    return places, prefixes


def by_prefix(split: Split) -> np.ndarray:
    """The sentences (sentences,) in the order of their tokens, like beginnings side by side."""
    bounds, tokens = split.cu_seqlens.tolist(), split.input_ids.tolist()
    return np.array(sorted(range(len(split)), key=lambda i: tokens[bounds[i] : bounds[i + 1]]))


def shuffled(sentences: int, sr_no: int, epoch: int) -> np.ndarray:
    """The order (sentences,) of an epoch, a function of ``sr_no`` and ``epoch`` alone."""
    return np.random.default_rng([sr_no, epoch]).permutation(sentences)


def within_budget(split: Split, indices: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Cut ``indices`` into consecutive pieces of at most ``max_tokens`` tokens, never a sentence.

    A sentence longer than the budget is a piece of its own.
    """
    start, tokens = 0, 0
    for i, length in enumerate(split.seqlens[indices]):
        if tokens + length > max_tokens and i > start:
            yield indices[start:i]
            start, tokens = i, 0
        tokens += length
    if start < len(indices):
        yield indices[start:]
