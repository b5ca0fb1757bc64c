"""CoLA's files -> token ids -> packed batches.

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

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support.corpus import find_corpus
from support.errors import UserError
from support.files import read_bytes
from support.fingerprints import fingerprint

SPLITS = ("in_domain_train", "in_domain_dev", "out_of_domain_dev")
TRAIN, DEV, OUT_OF_DOMAIN = SPLITS
UNLABELLED = -100  # torch.nn.functional.cross_entropy's ignore_index
# What no text has, of ASCII. Three of CoLA's training sentences hold a backspace, which stays.
CONTROL = re.compile(r"[\x00-\x07\x0b-\x1f\x7f]")


# ---------------------------------------------------------------------------------------------
# Reading


def read_lines(content: bytes, source: str) -> list[str]:
    """The lines of a text; ``source`` says in an error where they are from."""
    lines = []
    # str.splitlines would also break at U+2028 and others.
    for number, raw in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            at = f"{source}, line {number}: byte {error.start + 1}"
            raise UserError(f"{at} is not UTF-8; convert it") from None
        if found := CONTROL.search(line):
            what = f"a control character, {found.group()!r}; is this text?"
            raise UserError(f"{source}, line {number}: {what}")
        lines.append(line)
    return lines


def read_split(path: Path) -> tuple[list[str], list[int]]:
    """Read one file in CoLA's format into its sentences and their labels.

    Four tab-separated columns (source code, label, the author's own mark, sentence), no header,
    no quoting, UTF-8, with or without a newline at the end.
    """
    content, sentences, labels = read_bytes(path), [], []
    if not content:
        raise UserError(f"{path}: the file is empty; CoLA's format has one sentence a line")
    for number, line in enumerate(read_lines(content, str(path)), start=1):
        where, columns = f"{path}, line {number}", line.split("\t")
        if len(columns) != 4:
            raise UserError(
                f"{where}: {len(columns)} tab-separated columns where CoLA has 4 "
                "(source, label, author's mark, sentence)"
            )
        _, label, _, sentence = columns
        if label not in ("0", "1"):
            raise UserError(f"{where}: the label is {label!r}; it must be 0 or 1")
        if not sentence.strip():
            raise UserError(f"{where}: the sentence is empty; remove the line")
        sentences.append(sentence)
        labels.append(int(label))
    return sentences, labels


# ---------------------------------------------------------------------------------------------
# Tokenising


class Rows(Protocol):
    """What gives the rows (n, width) of some indices (n,), as a tensor does."""

    def __getitem__(self, indices: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Split:
    """Tokenised sentences, on the CPU."""

    sentences: list[str]
    input_ids: Tensor  # (tokens,)
    cu_seqlens: Tensor  # (sentences + 1,)
    labels: Tensor  # (sentences,)  UNLABELLED where nobody judged the sentence
    teacher_logits: Tensor | None = None  # (sentences, 2)  once a teacher has read it
    teacher_states: Rows | None = None  # (tokens, hints)  where it gives hints at every token

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def seqlens(self) -> np.ndarray:
        """Tokens of each sentence, (sentences,)."""
        return np.diff(self.cu_seqlens.numpy())

    def part(self, start: int, stop: int) -> "Split":
        """The sentences from ``start`` to before ``stop``."""
        bounds = self.cu_seqlens[start : stop + 1]
        ids = self.input_ids[bounds[0] : bounds[-1]]
        return Split(self.sentences[start:stop], ids, bounds - bounds[0], self.labels[start:stop])

    def chosen(self, indices: np.ndarray) -> "Split":
        """The sentences ``indices``."""
        ids = self.input_ids.split(self.seqlens.tolist())
        return Split(
            sentences=[self.sentences[i] for i in indices],
            input_ids=torch.cat([ids[i] for i in indices]),
            cu_seqlens=torch.from_numpy(np.cumsum([0, *self.seqlens[indices]])),
            labels=self.labels[indices],
        )

    def counts(self) -> dict[str, int]:
        """How many sentences, tokens and acceptable sentences there are."""
        return {
            "sentences": len(self),
            "tokens": len(self.input_ids),
            "acceptable": int((self.labels == 1).sum()),
        }


def token_ids(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Each sentence's tokens, with the special ones that the tokenizer adds by itself, if any."""
    found = tokenizer.encode_batch_fast(list(sentences))
    return [encoding.ids for encoding in found]


def tokenize(
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    labels: Sequence[int],
    max_length: int,
    source: str,
) -> Split:
    """Tokenise sentences, cutting none short.

    Args:
        tokenizer: the model's.
        sentences: the sentences, each giving at least one token.
        labels: 0, 1 or ``UNLABELLED`` for each sentence.
        max_length: the model's number of positions.
        source: where the sentences come from, for the error that names the line of one too long.
    """
    ids_of = token_ids(tokenizer, sentences)
    for number, ids in enumerate(ids_of, start=1):
        if not 0 < len(ids) <= max_length:
            raise UserError(
                f"{source}, line {number}: {len(ids)} tokens, where the model takes 1 to "
                f"{max_length}; shorten the sentence"
            )
    return Split(
        sentences=list(sentences),
        input_ids=torch.tensor([token for ids in ids_of for token in ids]),
        cu_seqlens=torch.tensor(np.cumsum([0] + [len(ids) for ids in ids_of])),
        labels=torch.tensor(labels),
    )


def load_corpus(data_dir: Path, tokenizer: Tokenizer, max_length: int) -> dict[str, Split]:
    """Read, check and tokenise the three files of a corpus in CoLA's layout, by split name.

    The project's own CoLA folder is fetched on first use.
    """
    raw = find_corpus(data_dir) / "raw"
    paths = {split: raw / f"{split}.tsv" for split in SPLITS}
    return {
        split: tokenize(tokenizer, *read_split(path), max_length, str(path))
        for split, path in paths.items()
    }


def corpus_fingerprint(corpus: dict[str, Split]) -> str:
    """Of the token ids and labels: of the data and of the tokenizer's view of them."""
    return fingerprint(*(t for s in corpus.values() for t in (s.input_ids, s.cu_seqlens, s.labels)))


# ---------------------------------------------------------------------------------------------
# Packing


class Batch(NamedTuple):
    """Sentences packed end to end, longest first.

    Longest first puts sentences of equal length side by side, so that attention can view each such
    block as a dense one (model.py), and it is the order that ``nn.RNN`` wants.

    In a causal model what is computed at a token depends on the tokens up to it, its prefix, and
    on nothing else: equal prefixes are computed once. They are numbered as they appear. "She sat ."
    and "She slept ." have prefix_ids [0 1 2 0 3 4], met first at the tokens [0 1 2 4 5].
    """

    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (tokens,)
    cu_seqlens: Tensor  # (sentences + 1,)
    labels: Tensor  # (sentences,)
    indices: Tensor  # (sentences,)  which sentence of the split each one is
    teacher_logits: Tensor | None  # (sentences, 2)
    teacher_states: Tensor | None  # (tokens, hints)
    prefix_ids: Tensor  # (tokens,)  which prefix ends at each token
    prefix_tokens: Tensor  # (prefixes,)  the token where each prefix is met first
    blocks: tuple[tuple[int, int], ...]  # (length, sentences) of equally long ones, on the host

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
    places = torch.from_numpy(np.repeat(starts, lengths) + position_ids)  # in the split
    input_ids = split.input_ids[places]
    prefix_ids, prefix_tokens = distinct_prefixes(input_ids.tolist(), position_ids.tolist())
    return Batch(
        input_ids=input_ids,
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        labels=split.labels[chosen],
        indices=chosen,
        teacher_logits=None if split.teacher_logits is None else split.teacher_logits[chosen],
        teacher_states=None if split.teacher_states is None else split.teacher_states[places],
        prefix_ids=torch.tensor(prefix_ids),
        prefix_tokens=torch.tensor(prefix_tokens),
        blocks=tuple((length, len(list(block))) for length, block in groupby(lengths.tolist())),
    )


def distinct_prefixes(input_ids: list[int], position_ids: list[int]) -> tuple[list, list]:
    """``Batch.prefix_ids`` and ``Batch.prefix_tokens`` of packed tokens."""
    known: dict[tuple[int, int], int] = {}  # (the prefix before, the token) -> the prefix
    prefix_ids, prefix_tokens = [], []
    for place, (token, position) in enumerate(zip(input_ids, position_ids, strict=True)):
        before = prefix_ids[-1] if position else -1
        prefix_ids.append(known.setdefault((before, token), len(known)))
        if len(known) > len(prefix_tokens):
            prefix_tokens.append(place)
    return prefix_ids, prefix_tokens


def by_prefix(split: Split) -> np.ndarray:
    """The sentences (sentences,) in the order of their tokens, like beginnings side by side."""
    bounds, tokens = split.cu_seqlens.tolist(), split.input_ids.tolist()
    return np.array(sorted(range(len(split)), key=lambda i: tokens[bounds[i] : bounds[i + 1]]))


def by_length(split: Split) -> np.ndarray:
    """The sentences (sentences,), the longest first."""
    return np.argsort(-split.seqlens, kind="stable")


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
