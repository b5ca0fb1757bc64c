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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support.bases import token_ids
from support.corpus import TRAIN, Corpus, bare, read_corpus
from support.errors import UserError
from support.processes import rank_and_processes

MAX_TOKENS = 2048  # of one forward pass on a processor, whose caches they suit
GPU_TOKENS = 16_384  # on a GPU, which takes them in hardly more time
UNLABELLED = -100  # torch.nn.functional.cross_entropy's ignore_index
HELD_OUT = "held_out"  # a split of labelled sentences that are not trained on


# ---------------------------------------------------------------------------------------------
# Tokenised sentences


@dataclass(frozen=True)
class Split:
    """Tokenised sentences, on the CPU, and what a teacher answers for them."""

    sentences: list[str]
    input_ids: Tensor  # (tokens,)
    cu_seqlens: Tensor  # (sentences + 1,)
    labels: Tensor  # (sentences,)  UNLABELLED where nobody judged the sentence
    teacher_logits: Tensor | None = None  # (sentences, 2)
    hints: Tensor | None = None  # (tokens, hints), in half precision

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def seqlens(self) -> np.ndarray:
        """Return the tokens of each sentence, (sentences,)."""
        return np.diff(self.cu_seqlens.numpy())

    def token_indices(self, indices: np.ndarray) -> Tensor:
        """Return where the tokens of the sentences ``indices`` stand, (tokens,)."""
        lengths, starts = self.seqlens[indices], self.cu_seqlens.numpy()[indices]
        before = np.cumsum(lengths) - lengths  # tokens before each sentence, in the result
        return torch.from_numpy(np.arange(lengths.sum()) + np.repeat(starts - before, lengths))

    def chosen(self, indices: np.ndarray) -> "Split":
        """Return the sentences ``indices``, with the teacher's answers."""
        tokens, chosen = self.token_indices(indices), torch.from_numpy(indices)
        return Split(
            sentences=[self.sentences[i] for i in indices],
            input_ids=self.input_ids[tokens],
            cu_seqlens=torch.from_numpy(np.cumsum([0, *self.seqlens[indices]])),
            labels=self.labels[chosen],
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits[chosen],
            hints=None if self.hints is None else self.hints[tokens],
        )

    def chunks(self, max_tokens: int) -> Iterator["Split"]:
        """Cut the split into consecutive parts of at most so many tokens, never a sentence."""
        for indices in within_budget(self, np.arange(len(self)), max_tokens):
            yield self.chosen(indices)

    def batches(self, device: torch.device) -> Iterator["Batch"]:
        """Pack this process' share of the sentences, those of equal length together."""
        rank, processes = rank_and_processes()
        by_length = np.argsort(-self.seqlens, kind="stable")
        pieces = list(within_budget(self, by_length, most_tokens(device)))
        for piece in pieces[rank::processes]:
            yield pack(self, piece).to(device)


def tokenize(
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    labels: Sequence[int],
    max_length: int,
    source: str,
    lines: Sequence[int] | None = None,
) -> Split:
    """Tokenise sentences, each with a label 0, 1 or ``UNLABELLED``, cutting none short.

    ``max_length`` is the model's number of positions. The error for a sentence that is too long
    names its ``source`` and its line there; without ``lines`` they are numbered from 1.
    """
    ids_of = token_ids(tokenizer, sentences)
    for number, ids in zip(lines or range(1, len(ids_of) + 1), ids_of, strict=True):
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
    """Read, check and tokenise a corpus, by split."""
    return tokenize_corpus(read_corpus(data_dir), tokenizer, max_length)


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer, max_length: int) -> dict[str, Split]:
    """Tokenise a corpus, by split."""
    splits = {}
    for split, rows in corpus.rows.items():
        sentences, labels, lines, _ = zip(*rows, strict=True)
        source = str(corpus.files[split])
        splits[split] = tokenize(tokenizer, sentences, labels, max_length, source, lines)
    return splits


def hold_out(corpus: dict[str, Split], size: int) -> dict[str, Split]:
    """Return the corpus with ``size`` of its training sentences in a split of their own.

    They are the same for every sr_no, so that a teacher's answers for the rest serve all. A corpus
    may have a sentence twice: no copy of one that is held out stays among the training sentences.
    """
    if not size:
        return corpus
    train = corpus[TRAIN]
    held_out, rest = np.split(np.random.default_rng(0).permutation(len(train)), [size])
    taken = {bare(train.sentences[i]) for i in held_out}
    rest = np.array([i for i in np.sort(rest) if bare(train.sentences[i]) not in taken])
    if not rest.size:
        raise UserError(f"--held_out {size}: the corpus has {len(train)}; hold out fewer")
    corpus = {**corpus, TRAIN: train.chosen(rest), HELD_OUT: train.chosen(held_out)}
    if len(corpus[HELD_OUT].labels.unique()) == 1:
        raise UserError(f"--held_out {size}: these have one label; hold out more")
    return corpus


# ---------------------------------------------------------------------------------------------
# Packing


class Batch(NamedTuple):
    """Sentences packed end to end, longest first.

    Longest first puts sentences of equal length side by side, so that attention can view each such
    block as a dense one (model.py), and it is the order that a recurrence wants.
    """

    input_ids: Tensor  # (tokens,)
    position_ids: Tensor  # (tokens,)
    cu_seqlens: Tensor  # (sentences + 1,)
    labels: Tensor  # (sentences,)
    indices: Tensor  # (sentences,)  which sentence of the split each one is
    token_indices: Tensor  # (tokens,)  which token of the split each one is
    teacher_logits: Tensor | None  # (sentences, 2)
    hints: Tensor | None  # (tokens, hints)
    blocks: tuple[tuple[int, int], ...]  # (length, sentences) of equally long ones, on the host

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on ``device``."""
        return Batch(*(x.to(device) if isinstance(x, Tensor) else x for x in self))

    @property
    def last_tokens(self) -> Tensor:
        """Return each sentence's last token, (sentences,)."""
        return self.cu_seqlens[1:] - 1


def pack(split: Split, indices: np.ndarray) -> Batch:
    """Pack the sentences ``indices (sentences,)`` of a split into one batch."""
    indices = indices[np.argsort(-split.seqlens[indices], kind="stable")]
    part, lengths = split.chosen(indices), split.seqlens[indices]  # (sentences,), falling
    starts = np.repeat(part.cu_seqlens[:-1].numpy(), lengths)
    position_ids = np.arange(len(starts)) - starts
    return Batch(
        input_ids=part.input_ids,
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=part.cu_seqlens,
        labels=part.labels,
        indices=torch.from_numpy(indices),
        token_indices=split.token_indices(indices),
        teacher_logits=part.teacher_logits,
        hints=part.hints,
        blocks=tuple((length, len(list(block))) for length, block in groupby(lengths.tolist())),
    )


def shuffled(sentences: int, sr_no: int, epoch: int) -> np.ndarray:
    """Return the order (sentences,) of an epoch, a function of ``sr_no`` and ``epoch`` alone."""
    return np.random.default_rng([sr_no, epoch]).permutation(sentences)


def most_tokens(device: torch.device) -> int:
    """Return the tokens of one forward pass; a larger batch is cut and its gradients accumulate."""
    return MAX_TOKENS if device.type == "cpu" else GPU_TOKENS


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
