"""Vary sentences by one edit each, for a teacher to label.

The results are often unacceptable. The final mark stays in its place, and so does the capital of a
word that is written without one elsewhere: they give no edit away.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from data_utils import Split
from support.corpus import MARKS, TRAIN, bare
from support.errors import UserError
from support.progress import progress_bar

EXHAUSTED = 10_000  # draws in a row that gave nothing new: hardly anything is left
TRIES = 100  # for a mistake that is new
CONFUSED = Path(__file__).with_name("confused.txt")  # words that learners of English confuse
ENDING = re.compile(r"(ing|ed|er|est|es|ly|s|e|d)$")  # by which forms of a word differ


def edited_sentences(
    corpus: dict[str, Split], tokenizer: Tokenizer, max_length: int, size: int, sr_no: int
) -> list[str]:
    """Return ``size`` variations of the training sentences.

    None is a sentence of the corpus, in whatever case, spacing and final mark those of the other
    splits are, or longer than ``max_length`` tokens.
    """
    parts = words_and_marks(corpus[TRAIN].sentences)
    taken = {bare(s) for name, split in corpus.items() if name != TRAIN for s in split.sentences}
    new = (
        sentence
        for sentence in variations(parts, set(corpus[TRAIN].sentences), sr_no)
        if bare(sentence) not in taken and 0 < len(tokenizer.encode(sentence).ids) <= max_length
    )
    edited = list(progress_bar("editing sentence", size, iterable=islice(new, size)))
    if len(edited) < size:
        raise UserError(
            f"--transfer_size {size}: the training sentences have no more than {len(edited)} "
            "variations; ask for fewer"
        )
    return edited


def words_and_marks(sentences: list[str]) -> list[tuple[list[str], str]]:
    """Split sentences into words, the first as it is written mid-sentence, and the final mark."""
    midwords = {word for sentence in sentences for word in sentence.rstrip(MARKS).split()[1:]}
    parts = []
    for sentence in sentences:
        unmarked = sentence.rstrip(MARKS)
        words = unmarked.split()
        if words and words[0] not in midwords and words[0].lower() in midwords:
            words[0] = words[0].lower()
        if words:
            parts.append((words, sentence[len(unmarked) :]))
    return parts


def variations(parts: list[tuple[list[str], str]], seen: set[str], sr_no: int) -> Iterator[str]:
    """Yield variations that are not in ``seen``, and add them to it, while there are any.

    Two words are swapped, a word is dropped, a word of the corpus inserted, or a word replaced by
    one with the same three letters at its beginning or the same two at its end.
    """
    rng = random.Random(f"transfer set {sr_no}")
    vocabulary = [word for words, _ in parts for word in words]
    begins, ends = defaultdict(list), defaultdict(list)  # words of like form
    for word in dict.fromkeys(vocabulary):
        begins[word[:3].lower()].append(word)
        ends[word[-2:]].append(word)
    missed = 0
    while parts and missed < EXHAUSTED:
        words, mark = rng.choice(parts)
        words, place = list(words), rng.randrange(len(words))
        edit = rng.choice(("swap", "drop", "insert", "begin", "end"))
        if edit == "swap":
            other = rng.randrange(len(words))
            words[place], words[other] = words[other], words[place]
        elif edit == "insert":
            words.insert(place, rng.choice(vocabulary))
        elif edit == "begin":
            words[place] = rng.choice(begins[words[place][:3].lower()])
        elif edit == "end":
            words[place] = rng.choice(ends[words[place][-2:]])
        elif len(words) > 1:
            del words[place]
        sentence = " ".join(words) + mark
        sentence = sentence[:1].upper() + sentence[1:]
        missed += 1
        if sentence not in seen:
            seen.add(sentence)
            missed = 0
            yield sentence


def with_mistakes(sentences: list[str], known: set[str]) -> list[str]:
    """Return each sentence changed in one place, most often for the worse, where that is new.

    A word is replaced by one that is easily confused with it (confused.txt) or by another of its
    forms, or dropped, or two neighbours change places. ``known``, by `bare`, is not new.
    """
    rng, parts = random.Random(0), words_and_marks(sentences)
    known = known | {bare(sentence) for sentence in sentences}
    lines = [line.split() for line in CONFUSED.read_text().splitlines()]
    forms = defaultdict(list)
    for word in dict.fromkeys(word for words, _ in parts for word in words if len(word) > 3):
        forms[ENDING.sub("", word)].append(word)
    others = defaultdict(list)
    for alike in (*lines, *forms.values()):
        for word in alike:
            others[word] += [other for other in alike if other != word]
    made: list[str] = []
    for whole, mark in parts:
        for _ in range(TRIES):
            words, place = list(whole), rng.randrange(len(whole))
            edit = rng.choice(("replace", "replace", "drop", "swap"))
            if edit == "replace" and others[words[place]]:
                words[place] = rng.choice(others[words[place]])
            elif edit == "drop":
                del words[place]
            elif edit == "swap":
                words[place - 1 : place + 1] = words[place - 1 : place + 1][::-1]
            sentence = " ".join(words) + mark
            sentence = sentence[:1].upper() + sentence[1:]
            if words and bare(sentence) not in known:
                known.add(bare(sentence))
                made.append(sentence)
                break
    return made
