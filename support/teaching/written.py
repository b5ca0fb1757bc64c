"""Have a base write sentences by itself, and save them for every seed and every student.

It continues a list of sentences, one a line, and so writes more of their kind: after training
sentences of one label, of which the unacceptable have it err a little more often, or after everyday
ones (everyday.txt, written for this project). Whole sentences that are new are saved. After He et
al. 2021, Generate, annotate, and learn (https://arxiv.org/abs/2106.06168).
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from data_utils import Split
from support.bases import Base, load_language_model, token_ids, variant_name
from support.corpus import TRAIN, bare
from support.devices import Device
from support.errors import UserError
from support.files import read_bytes, read_json, write_json
from support.fingerprints import corpus_fingerprint, fingerprint
from support.processes import any_process, barrier, interruptible, is_main
from support.progress import progress_bar
from support.runs.locks import locked
from support.sentences import read_sentences
from support.teaching.continuations import continuations
from support.teaching.edits import with_mistakes

EVERYDAY = Path(__file__).with_name("everyday.txt")
RULE = 2  # of how tokens are drawn: what another rule gave is not gone on with
EXAMPLES, TOP_K = 3, 150  # sentences of a prompt, choices a token
ROWS = 64  # continuations of a prompt
WORDS, MOST_TOKENS = range(3, 21), 32  # of a sentence
SAVE_EVERY = 5  # batches
FRUITLESS = 25  # batches in a row that gave nothing new: the model has nothing more to say


def written_sentences(
    base: Base,
    base_key: str,
    corpus: dict[str, Split],
    size: int,
    device: Device,
    folder: Path,
    everyday: bool = False,
) -> list[str]:
    """Return ``size`` sentences, the same for every sr_no; none is a sentence of any split.

    They are saved in ``folder``, in a file for each base (its fingerprint is ``base_key``), corpus,
    kind of prompt and kind of device, and gone on with from there. Prompts are of the training
    split, or ``everyday`` sentences. SIGINT and SIGTERM raise KeyboardInterrupt with all of it
    saved.
    """
    page = EVERYDAY.read_text().splitlines() if everyday else []
    examples = examples_of(base, [page] if page else by_label(corpus[TRAIN]))
    drawn = RULE, device.torch.type, device.precision  # each draws and rounds in its own way
    how = repr((*drawn, EXAMPLES, TOP_K, prompts_at_once(device), ROWS, WORDS, MOST_TOKENS))
    known = [s for split in corpus.values() for s in split.sentences] + page
    tokens = base.tokenizer.to_str(), corpus_fingerprint(corpus)
    key = fingerprint(base_key, *tokens, how, *known)
    path = folder / f"{variant_name(base.name)}_{key[:12]}.json"
    with locked(path.with_suffix(".lock"), wait=True):
        state = saved_state(path)
        if any_process(len(state["sentences"]) < size):
            batches = written_batches(base, examples, device, state["batches"])
            write(batches, {bare(sentence) for sentence in known}, size, path, state)
            state = read_json(path)
    sentences = state["sentences"]
    if len(sentences) < size:
        raise UserError(
            f"--transfer_size: {base.name} was to write {size} new sentences and has no more than "
            f"{len(sentences)}; ask for fewer, or for --transfer_source edits"
        )
    return sentences[:size]


def everyday_sentences(
    base: Base, base_key: str, corpus: dict[str, Split], size: int, device: Device, folder: Path
) -> list[str]:
    """Return `written_sentences`: half of them after the corpus, the others everyday English.

    Half of these are as they were written, and half are the same with a mistake each.
    """
    source, place = (base, base_key, corpus), (device, folder)
    known = {bare(sentence) for split in corpus.values() for sentence in split.sentences}
    after_corpus = written_sentences(*source, size - size // 4 * 2, *place)
    plain = written_sentences(*source, size // 4, *place, everyday=True)
    everyday = plain + with_mistakes(plain, known)
    taken = set(map(bare, everyday))
    while True:  # more, where one was written after both, or has no mistake that is new
        new = [sentence for sentence in after_corpus if bare(sentence) not in taken] + everyday
        if len(new) == size:
            return new
        after_corpus = written_sentences(*source, len(after_corpus) + size - len(new), *place)


def prompts_at_once(device: Device) -> int:
    """Return how many prompts a batch has: a GPU takes a token of four as long as of many."""
    return 4 if device.torch.type == "cpu" else 64


def sentences_of_file(
    path: Path, corpus: dict[str, Split], size: int
) -> tuple[list[str], list[int]]:
    """Return the first ``size`` sentences of a file that are in no split, and their lines."""
    table = read_sentences(read_bytes(path), str(path))
    if table.layout:
        print(table.understood(), file=sys.stderr)
    known = {bare(sentence) for split in corpus.values() for sentence in split.sentences}
    new: dict[str, int] = {}
    for row in table.rows:
        if bare(row.sentence) not in known and len(new) < size:
            new.setdefault(row.sentence, row.line)
    if len(new) < size:
        raise UserError(f"{path}: {len(new)} new sentences; --transfer_size asks for {size}")
    return list(new), list(new.values())


def by_label(train: Split) -> list[list[str]]:
    """Return the unacceptable and the acceptable training sentences."""
    labels = train.labels.numpy()
    return [[train.sentences[i] for i in np.flatnonzero(labels == label)] for label in (0, 1)]


def examples_of(base: Base, kinds: list[list[str]]) -> list[list[str]]:
    """Return the sentences of each kind that are short enough for a prompt."""
    most = (base.max_length - MOST_TOKENS) // EXAMPLES - 1  # less one for a line's end
    short = []
    for sentences in kinds:
        ids = token_ids(base.tokenizer, sentences)
        short.append([s for s, tokens in zip(sentences, ids, strict=True) if len(tokens) <= most])
    if min(map(len, short)) < EXAMPLES:
        raise UserError(
            f"--transfer_source: a base writes after {EXAMPLES} sentences of a kind, each of at "
            f"most {most} tokens; here are {' and '.join(str(len(one)) for one in short)}; take "
            "edits"
        )
    return short


def saved_state(path: Path) -> dict:
    """Return what `write` left in a file; the state to begin with, where it is not whole."""
    with suppress(UserError):
        state = read_json(path)
        sentences, batches = state.get("sentences"), state.get("batches")
        whole = isinstance(sentences, list) and all(isinstance(s, str) for s in sentences)
        if whole and type(batches) is int and batches >= 0:
            return state
    return {"batches": 0, "sentences": []}


def write(
    batches: Iterator[list[str]], known: set[str], size: int, path: Path, state: dict
) -> None:
    """Add new sentences to ``state`` until it has ``size``. The main process works, others wait."""
    sentences, fruitless = state["sentences"], 0
    seen = known | {bare(sentence) for sentence in sentences}
    bar = progress_bar("writing sentence", size, len(sentences))
    with bar, interruptible() as interruption:
        while any_process(is_main() and len(sentences) < size and fruitless < FRUITLESS):
            if is_main():
                before = len(sentences)
                for sentence in next(batches):
                    if bare(sentence) not in seen:
                        seen.add(bare(sentence))
                        sentences.append(sentence)
                state["batches"] += 1
                fruitless = 0 if len(sentences) > before else fruitless + 1
                bar.update(len(sentences) - before)
            stop = any_process(interruption.requested)
            if stop or state["batches"] % SAVE_EVERY == 0:
                write_json(path, state)
            if stop:
                raise KeyboardInterrupt
    write_json(path, state)
    barrier()


def written_batches(
    base: Base, examples: list[list[str]], device: Device, first: int
) -> Iterator[list[str]]:
    """Yield the whole sentences that each batch of prompts gives, from batch ``first`` on."""
    model = device.place(load_language_model(base.folder))
    separator, ends = sentence_tokens(base.tokenizer)
    ends = ends.to(device.torch)
    for number in count(first):
        rng, prompts = np.random.default_rng([0, number]), []
        for kind in examples * (prompts_at_once(device) // len(examples)):
            chosen = rng.choice(len(kind), EXAMPLES, replace=False)
            prompts.append(separator.join(kind[i] for i in chosen) + separator.strip(" "))
        ids = token_ids(base.tokenizer, prompts)
        generator = torch.Generator(device.torch).manual_seed(number)
        with device.autocast():
            rows = continuations(model, ids, ROWS, TOP_K, MOST_TOKENS, ends, generator)
        lines = [base.tokenizer.decode(row).split("\n")[0].strip() for row in rows]
        yield [s for s in lines if len(s.split()) in WORDS and s[0].isupper() and s[-1] in ".?!"]


def sentence_tokens(tokenizer: Tokenizer) -> tuple[str, Tensor]:
    """Return what stands between two sentences of a prompt, and which tokens (vocabulary,) end one.

    A line's end does, where the tokenizer has learnt more than one such token; else its model has
    seen running text alone, as nano, and a space and the marks at a sentence's end do. A special
    token ends a sentence too: it ends the text.
    """
    pieces = tokenizer.decode_batch([[i] for i in range(tokenizer.get_vocab_size())])
    special = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    separator, ends = "\n", ["\n" in piece for piece in pieces]
    if sum(ends) < 2:
        separator, ends = " ", [piece.endswith((".", "?", "!")) for piece in pieces]
    ends = torch.tensor(ends)
    ends[special] = True
    return separator, ends
