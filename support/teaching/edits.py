"""Vary sentences by one edit each, for a teacher to label.

Two words are swapped, a word is dropped, a word of the corpus inserted, or a word replaced by one
of like form: with the same three letters at its beginning or the same two at its end. The results
are often unacceptable. The capital at the start and the mark at the end stay in their places, so
that they do not give an edit away.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from tokenizers import Tokenizer
from tqdm import tqdm

from data_utils import Split
from support.bases import token_ids
from support.corpus import TRAIN
from support.errors import UserError

MARKS = " .?!"  # what may stand at a sentence's end
EXHAUSTED = 10_000  # draws in a row that gave nothing new: hardly anything is left


def transfer_sentences(
    corpus: dict[str, Split],
    tokenizer: Tokenizer,
    max_length: int,
    size: int,
    sr_no: int,
    written: Sequence[str] = (),
) -> list[str]:
    """Return ``size`` sentences that no split has: the ``written`` ones, and variations.

    Varied are the training sentences and the written ones. None is a sentence of another split in
    another case, spacing or mark at the end.
    """
    known, made = corpus[TRAIN].sentences, list(written)
    sources = known + made
    others = (split for name, split in corpus.items() if name != TRAIN)
    taken = {bare(sentence) for split in others for sentence in split.sentences}
    new = (s for s in variations(sources, sr_no, set(sources)) if bare(s) not in taken)
    what = {"desc": "transfer set", "total": size, "unit": " sentences"}
    with tqdm(**what, initial=len(made), disable=None) as bar:
        while len(made) < size:
            some = list(islice(new, min(size - len(made), 10_000)))
            if not some:
                raise UserError(
                    f"--transfer_size {size}: only {len(made) - len(written)} variations of the "
                    "training sentences were found; ask for fewer"
                )
            lengths = map(len, token_ids(tokenizer, some))
            # One edit can make a long sentence longer than the model takes.
            fitting = [s for s, n in zip(some, lengths, strict=True) if 0 < n <= max_length]
            made += fitting
            bar.update(len(fitting))
    return made


def bare(sentence: str) -> str:
    """Return what sentences share that differ in case, spacing and the mark at the end alone."""
    return " ".join(sentence.lower().split()).rstrip(MARKS)


def variations(sentences: list[str], sr_no: int, taken: set[str]) -> Iterator[str]:
    """Yield variations of ``sentences`` that are not ``taken``, each once, by the seed ``sr_no``.

    Ends when hardly any is left to be found.
    """
    rng = random.Random(f"transfer set {sr_no}")
    midwords = {word for sentence in sentences for word in sentence.rstrip(MARKS).split()[1:]}
    parts = [part for part in (words_and_mark(s, midwords) for s in sentences) if part[0]]
    vocabulary = [word for words, _ in parts for word in words]
    alike: dict[str, list[str]] = {}  # words of like form, by `form`
    for word in dict.fromkeys(vocabulary):
        for edit in ("begin", "end"):
            alike.setdefault(form(word, edit), []).append(word)
    seen: set[str] = set()
    missed = 0
    while parts and missed < EXHAUSTED:
        words, mark = rng.choice(parts)
        sentence = " ".join(edited(words, vocabulary, alike, rng)) + mark
        sentence = sentence[:1].upper() + sentence[1:]
        missed += 1
        if sentence not in taken and sentence not in seen:
            seen.add(sentence)
            missed = 0
            yield sentence


def words_and_mark(sentence: str, midwords: set[str]) -> tuple[list[str], str]:
    """Return a sentence's words, the first as it is written mid-sentence, and its final mark."""
    unmarked = sentence.rstrip(MARKS)
    words = unmarked.split()
    if words and words[0] not in midwords and words[0].lower() in midwords:
        words[0] = words[0].lower()
    return words, sentence[len(unmarked) :]


def form(word: str, edit: str) -> str:
    """Return the key of words of like form: "sle-" for sleep, sleeps, "-ps" for sleeps, jumps."""
    return word[:3].lower() + "-" if edit == "begin" else "-" + word[-2:]


def edited(
    words: list[str], vocabulary: list[str], alike: dict[str, list[str]], rng: random.Random
) -> list[str]:
    """Return a copy of ``words`` with one edit; at least one word stays."""
    words, place = list(words), rng.randrange(len(words))
    edit = rng.choice(("swap", "drop", "insert", "begin", "end"))
    if edit == "swap":
        other = rng.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    elif edit == "insert":
        words.insert(place, rng.choice(vocabulary))
    elif edit in ("begin", "end"):
        words[place] = rng.choice(alike[form(words[place], edit)])
    elif len(words) > 1:
        del words[place]
    return words
