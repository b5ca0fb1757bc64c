"""Make everything in this folder: the corpus, the tokenizer and the small GPT-2 called nano.

    python nano/make_nano.py                            all of it
    python nano/make_nano.py --corpus_only --out DIR    the three TSV files alone, into DIR

A seeded grammar of English writes minimal pairs, as BLiMP does (Warstadt et al. 2020,
https://arxiv.org/abs/1912.00582): each phenomenon is a function that returns an acceptable
sentence and its unacceptable partner, made of the same words as far as the phenomenon allows.
One member of a pair, never both, enters the labelled corpus. The acceptable members alone, and
plain sentences beside them, are what the model is pretrained on.
"""

import argparse
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
SEED = 20
SIZES = {"in_domain_train": 4000, "in_domain_dev": 1400, "out_of_domain_dev": 1400}
PRETRAINING_SENTENCES = 120_000
VOCABULARY = 1000  # tokens
SHAPE = {"n_layer": 6, "n_embd": 128, "n_head": 4, "n_positions": 512}
EPOCHS, LEARNING_RATE, TOKENS_PER_BATCH = 4, 2e-3, 2048
Pair = tuple[str, str]
Corpus = dict[str, list[tuple[str, int, str]]]  # split: (code, label, sentence)
END = "<|endoftext|>"

# ---------------------------------------------------------------------------------------------
# Lexicon. Forms follow the regular rules unless written out: "singular/plural" and
# "base/past/participle". A verb marked ? may drop its object.

NOUNS = {
    "m": "boy man/men king prince father brother uncle actor monk waiter son nephew husband",
    "f": "girl woman/women queen princess mother sister aunt actress nun waitress daughter niece "
    "wife/wives",
    "person": "teacher doctor student lawyer farmer pilot artist nurse singer writer baker judge "
    "driver painter soldier guest tourist neighbor dancer child/children sailor poet scientist "
    "gardener banker dentist plumber",
    "animal": "cat dog horse bird rabbit mouse/mice fox goose/geese sheepdog lion monkey parrot",
    "food": "cake pie apple sandwich pizza potato cookie banana tomato egg pancake orange",
    "text": "book letter poem novel report newspaper story magazine essay article",
    "thing": "car bicycle lamp chair table clock guitar watch phone camera piano/pianos bottle "
    "basket hat coat ring box key umbrella ladder mirror knife/knives",
    "place": "garden kitchen park library office school museum hotel garage station church market",
}
NAMES = {
    "m": "John Peter David Tom Paul Adam Henry Oscar",
    "f": "Mary Anna Susan Jane Emma Laura Alice Ruth",
}
VERBS = {
    "": "sleep/slept/slept laugh smile sneeze cough yawn complain shiver travel faint "
    "swim/swam/swum weep/wept/wept stumble giggle snore blush hesitate",
    "human": "admire praise greet invite blame thank insult trust amuse rescue annoy welcome "
    "tease comfort hire? see/saw/seen? choose/chose/chosen? forgive/forgave/forgiven?",
    "food": "devour slice buy/bought/bought bring/brought/brought take/took/taken "
    "eat/ate/eaten? bake? cook?",
    "text": "borrow discuss mention recommend describe publish? translate? write/wrote/written?",
    "thing": "repair destroy discover carry buy/bought/bought find/found/found remove damage "
    "take/took/taken throw/threw/thrown break/broke/broken? steal/stole/stolen? "
    "draw/drew/drawn?",
}
DOUBLING = {"swim", "plan", "quit"}
TWO_OBJECTS = "buy bring take find throw choose draw write bake cook"
BRIDGE = "think/thought/thought say/said/said believe claim hope"  # verbs that take a clause
TO_VERBS = "want hope decide plan refuse agree promise manage seem fail"
ING_VERBS = "enjoy avoid finish practice quit/quit/quit"
TO_OBJECT = "persuade ask force allow tell/told/told advise"
BARE_OBJECT = "let/let/let make/made/made"
ADJECTIVES = "old tall young short kind rich poor strong weak smart slow quick"
LOOKS = "new small big red green heavy cheap clean pretty famous old strange"
STATES = "happy tired angry famous hungry clever polite nervous sad busy"
MANNER = "quietly quickly loudly slowly suddenly again"
FREQUENCY = "often always rarely usually sometimes"
PREPOSITIONS = "near behind beside with"
SINGULAR = "the the the a a this that every each my our"
PLURAL = "the the the these those some many several two three my our"
PRONOUNS = "he/him she/her they/them we/us I/me"


@dataclass(frozen=True)
class Verb:
    """The forms of a verb, the kind of its object ("" for none) and whether it can be dropped."""

    base: str
    s: str
    past: str
    part: str
    ing: str
    takes: str = ""
    optional: bool = False

    @property
    def wh(self) -> str:
        """The question word for its object."""
        return "who" if self.takes == "human" else "what"

    def present(self, plural: bool) -> str:
        """The present-tense form for a third-person subject."""
        return self.base if plural else self.s


@dataclass(frozen=True)
class NP:
    """A noun phrase: its text, number and gender (m, f, or "" where the noun does not say)."""

    text: str
    plural: bool = False
    gender: str = ""

    @property
    def reflexive(self) -> str:
        """The pronoun that a noun phrase of this number and gender binds."""
        return "themselves" if self.plural else {"m": "himself", "f": "herself"}[self.gender]


def _s(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|ch|sh|z|o)$", word) else "s")


def _verb(entry: str, takes: str = "") -> Verb:
    base, *irregular = entry.rstrip("?").split("/")
    stem = base + base[-1] if base in DOUBLING else base
    past = stem + ("d" if stem.endswith("e") else "ed")
    past = re.sub(r"([^aeiou])yed$", r"\1ied", past)
    past, part = irregular or (past, past)
    ing = re.sub(r"([^e])e$", r"\1", stem) + "ing"
    return Verb(base, _s(base), past, part, ing, takes, entry.endswith("?"))


class Grammar:
    """Random phrases over the lexicon, all drawn from one seeded generator.

    Args:
        seed: of the generator.
        words: which nouns and verbs of the open lists to use: "known", three in four, are those of
            the training set; "new", the others, are for the out-of-domain set; or "all".
    """

    def __init__(self, seed: str, words: str) -> None:
        self.random = random.Random(seed)
        self.words = words
        self.verbs = {
            kind: [_verb(entry, kind) for entry in self._open(entries)]
            for kind, entries in VERBS.items()
        }
        self.nouns = {kind: self._open(entries) for kind, entries in NOUNS.items()}

    def _open(self, entries: str) -> list[str]:
        wanted = {"known": (0, 1, 2), "new": (3,), "all": (0, 1, 2, 3)}[self.words]
        return [entry for i, entry in enumerate(entries.split()) if i % 4 in wanted]

    def pick(self, options: str | Sequence) -> Any:
        """One of the options; a string is a list of words."""
        return self.random.choice(options.split() if isinstance(options, str) else options)

    def chance(self, p: float = 0.5) -> bool:
        """True with probability ``p``."""
        return self.random.random() < p

    def verb(self, words: str) -> Verb:
        """One of the verbs of a closed list."""
        return _verb(self.pick(words))

    def numbers(self, kind: str) -> Pair:
        """A noun of a kind, singular and plural."""
        kind = self.pick("m f person person") if kind == "human" else kind
        singular, *irregular = self.pick(self.nouns[kind]).split("/")
        return singular, irregular[0] if irregular else _s(singular)

    def np(
        self,
        kind: str = "human",
        plural: bool | None = None,
        det: str = "",
        name: float = 0.15,
        adjective: float = 0.15,
    ) -> NP:
        """A third-person noun phrase.

        Args:
            kind: a kind of noun, or "human" for any person, or "gendered".
            plural: its number, by default either.
            det: its determiner, by default any that fits.
            name: how often it is a name where it can be one.
            adjective: how often it has an adjective.
        """
        plural = self.chance() if plural is None else plural
        kind = {"human": "m f person person", "gendered": "m f"}.get(kind, kind)
        kind = self.pick(kind)
        gender = kind if kind in NAMES else ""
        if gender and not plural and not det and self.chance(2 * name):
            return NP(self.pick(NAMES[gender]), False, gender)
        adjectives = ADJECTIVES if gender or kind in ("person", "animal") else LOOKS
        words = [
            det or self.pick(PLURAL if plural else SINGULAR),
            self.pick(adjectives) if self.chance(adjective) else "",
            self.numbers(kind)[plural],
        ]
        return NP(" ".join(filter(None, words)), plural, gender)

    def transitive(self, takes: str = "human human food text thing", strict: bool = True) -> Verb:
        """A verb with an object of those kinds; ``strict`` leaves out those that may drop it."""
        verbs = self.verbs[self.pick(takes)]
        return self.pick([v for v in verbs if not (strict and v.optional)])

    def object(self, verb: Verb) -> str:
        """A noun phrase that the verb can take."""
        return self.np(verb.takes).text

    def predicate(self) -> tuple[Verb, str]:
        """A verb and what follows it."""
        if self.chance(0.4):
            return self.pick(self.verbs[""]), self.adjunct(0.6)
        verb = self.transitive(strict=False)
        return verb, f"{self.object(verb)} {self.adjunct(0.15)}"

    def adjunct(self, p: float) -> str:
        """With probability ``p`` a manner adverb or a place, else nothing."""
        if not self.chance(p):
            return ""
        return self.pick(MANNER) if self.chance(0.4) else self.where()

    def where(self) -> str:
        """A prepositional phrase of place."""
        preposition, kind = self.pick(
            [("in", "place"), ("near", "place"), ("behind", "place"), ("near", "human")]
        )
        return f"{preposition} {self.np(kind, plural=False, name=0).text}"

    def finite(self, verb: Verb, plural: bool) -> str:
        """The verb in one of the tenses."""
        return self.pick(
            [
                verb.past,
                verb.past,
                verb.present(plural),
                f"{self.pick('will can must')} {verb.base}",
                f"{'have' if plural else 'has'} {verb.part}",
                f"{'are' if plural else 'is'} {verb.ing}",
                f"did not {verb.base}",
            ]
        )

    def clause(self) -> str:
        """A plain acceptable clause."""
        subject, (verb, rest) = self.np(), self.predicate()
        if self.chance(0.12):
            return f"{subject.text} {'are' if subject.plural else 'is'} {self.pick(STATES)}"
        return f"{subject.text} {self.finite(verb, subject.plural)} {rest}"


# ---------------------------------------------------------------------------------------------
# Phenomena: each returns an acceptable and an unacceptable sentence, before capitals and stops.

PHENOMENA: dict[str, dict[str, Callable[[Grammar], Pair]]] = {"in": {}, "out": {}}


def phenomenon(domain: str, code: str) -> Callable:
    """Enter a function into ``PHENOMENA`` under the code of CoLA's first column."""

    def register(function: Callable[[Grammar], Pair]) -> Callable[[Grammar], Pair]:
        PHENOMENA[domain][code] = function
        return function

    return register


def fill(frame: str, good: str, bad: str) -> Pair:
    """The frame with either phrase at its ``{}``."""
    return frame.format(good), frame.format(bad)


def agreeing(g: Grammar, frame: str, plural: bool) -> Pair:
    """The frame with a present-tense predicate of the right and of the wrong number."""
    verb, rest = g.predicate()
    forms, adverb = (verb.s, verb.base), g.pick(FREQUENCY) + " " if g.chance(0.2) else ""
    if g.chance(0.3):
        forms, adverb, rest = ("is", "are"), "", g.pick(STATES)
    return fill(frame, *(f"{adverb}{forms[p]} {rest}" for p in (plural, not plural)))


def auxiliary(g: Grammar, verb: Verb, plural: bool) -> tuple[str, str, str]:
    """An auxiliary, the form of the verb that it takes, and one that it does not take."""
    word, form = g.pick(
        [
            ("have" if plural else "has", verb.part),
            ("are" if plural else "is", verb.ing),
            (g.pick("can will must"), verb.base),
            ("do" if plural else "does", verb.base),
        ]
    )
    wrong = {verb.base, verb.part, verb.ing} - {form}
    if form == verb.ing and verb.base in TWO_OBJECTS.split():
        wrong = {verb.base}  # "She is brought a cake" is acceptable
    return word, form, g.pick(sorted(wrong))


def lower_verb(g: Grammar, verb: Verb) -> tuple[Verb, str, str]:
    """A verb above ``verb``, the form that ``verb`` has below it, and one that it has not."""
    other = g.np().text
    words, good, bad = g.pick(
        [
            (TO_VERBS, f"to {verb.base}", verb.ing),
            (ING_VERBS, verb.ing, f"to {verb.base}"),
            (TO_OBJECT, f"{other} to {verb.base}", f"{other} {verb.base}"),
            (BARE_OBJECT, f"{other} {verb.base}", f"{other} to {verb.base}"),
        ]
    )
    return g.verb(words), good, bad


def one_object_verb(g: Grammar) -> Verb:
    """A transitive verb without a second object: "She was bought a cake" is acceptable."""
    while (verb := g.transitive(strict=False)).base in TWO_OBJECTS.split():
        pass
    return verb


def two_reflexives(g: Grammar) -> tuple[NP, NP]:
    """Two noun phrases that bind different reflexives."""
    one = g.np("gendered", plural=g.chance(0.33))
    while (other := g.np("gendered", plural=g.chance(0.33))).reflexive == one.reflexive:
        pass
    return one, other


@phenomenon("in", "agr")
def agreement(g: Grammar) -> Pair:
    """The verb agrees with its subject."""
    subject = g.np()
    return agreeing(g, f"{subject.text} {{}}", subject.plural)


@phenomenon("in", "det")
def determiner(g: Grammar) -> Pair:
    """A determiner agrees with its noun in number."""
    verb, plural, first = g.transitive(), g.chance(), g.chance()
    det = g.pick("these those many several two three" if plural else "a this that every each")
    adjective = g.pick(ADJECTIVES) if g.chance(0.2) else ""
    one, many = g.numbers("human" if first else verb.takes)
    frame = f"{g.np().text} {verb.past} {det} {adjective} {{}} {g.adjunct(0.3)}"
    if first:
        frame = f"{det} {adjective} {{}} {verb.past} {g.object(verb)}"
    return fill(frame, *((many, one) if plural else (one, many)))


@phenomenon("in", "refl")
def reflexive(g: Grammar) -> Pair:
    """A reflexive agrees with its antecedent in number and gender."""
    verb, (subject, other) = g.transitive("human"), two_reflexives(g)
    form = g.pick([verb.past, f"will {verb.base}"])
    frame = f"{subject.text} {form} {{}} {g.adjunct(0.4)}"
    return fill(frame, subject.reflexive, other.reflexive)


@phenomenon("in", "arg")
def argument_structure(g: Grammar) -> Pair:
    """A transitive verb has an object, an intransitive verb none."""
    subject, verb, good, bad = g.np(), g.pick(g.verbs[""]), "", g.np(g.pick("human thing")).text
    if g.chance():
        verb = g.transitive()
        good, bad = g.object(verb), ""
    frame = f"{subject.text} {g.finite(verb, subject.plural)} {{}} {g.adjunct(0.5)}"
    return fill(frame, good, bad)


@phenomenon("in", "form")
def verb_form(g: Grammar) -> Pair:
    """An auxiliary decides the form of the verb after it."""
    subject, (verb, rest) = g.np(), g.predicate()
    word, good, bad = auxiliary(g, verb, subject.plural)
    middle = "not" if word in ("do", "does") else g.pick(["", "", "not", g.pick(FREQUENCY)])
    return fill(f"{subject.text} {word} {middle} {{}} {rest}", good, bad)


@phenomenon("in", "inv")
def inversion(g: Grammar) -> Pair:
    """A question inverts subject and auxiliary, an embedded question does not."""
    subject, (verb, rest), wh = g.np(), g.predicate(), g.pick("why when where")
    if g.chance():
        verb, rest = g.transitive(), ""
        wh = verb.wh
    inverted = f"did {subject.text} {verb.base}"
    straight = f"{subject.text} {verb.past}"
    if g.chance():
        return fill(f"{wh} {{}} {rest} ?", inverted, straight)
    asker = f"{g.np().text} {g.pick('knew asked discovered')}"
    return fill(f"{asker} {wh} {{}} {rest}", straight, inverted)


@phenomenon("in", "gap")
def gap(g: Grammar) -> Pair:
    """A question word leaves a gap behind; without one there is none."""
    subject, verb, gapped = g.np(), g.transitive(), g.chance()
    frame = f"{g.np().text} {g.pick('knew discovered')} {verb.wh if gapped else 'that'} "
    frame += f"{subject.text} {verb.past} {{}} {g.adjunct(0.3)}"
    if g.chance():
        frame = f"{verb.wh if gapped else ''} did {subject.text} {verb.base} {{}} ?"
    phrases = "", g.object(verb)
    return fill(frame, *(phrases if gapped else phrases[::-1]))


@phenomenon("in", "island")
def island(g: Grammar) -> Pair:
    """A question reaches into a complement clause, not into a relative or an adjunct clause."""
    first, second, verb = g.np(), g.np(name=0), g.transitive()
    reachable = f"{g.verb(BRIDGE).base} that {second.text} {verb.past}"
    closed = f"{g.pick(g.verbs['']).base} because {second.text} {verb.past}"
    if g.chance():
        closed = f"{g.transitive('human').base} {second.text} who {verb.past}"
    if g.chance():
        return fill(f"{verb.wh} did {first.text} {{}} ?", reachable, closed)
    return fill(f"did {first.text} {{}} ?", f"{closed} {g.object(verb)}", reachable)


@phenomenon("in", "npi")
def negative_polarity(g: Grammar) -> Pair:
    """ "Any" and "ever" stand below a negation, not above it or beside it."""
    verb, one = g.transitive(strict=False), g.numbers("human")[0]
    frame = f"{{}} has ever {verb.part} {g.object(verb)}"
    match g.pick("subject clause any"):
        case "subject":
            thing = g.numbers(verb.takes)[0]
            return (
                f"no {one} has ever {verb.part} the {thing}",
                f"the {one} has ever {verb.part} no {thing}",
            )
        case "clause":
            inner = f"{g.numbers('human')[0]} {g.transitive('human').past}"
            return fill(frame, f"no {one} that the {inner}", f"the {one} that no {inner}")
        case _:
            thing = g.numbers(verb.takes)[0]
            form = g.pick([f"did not {verb.base}", f"has never {verb.part}"])
            return f"the {one} {form} any {thing}", f"any {one} {form} the {thing}"


@phenomenon("in", "pass")
def passive(g: Grammar) -> Pair:
    """A passive has a participle and no object; an intransitive verb has no passive."""
    verb = one_object_verb(g)
    patient, doer, mono = g.np(verb.takes), g.np(), g.pick(g.verbs[""])
    was, did = ("were" if np.plural else "was" for np in (patient, doer))
    return g.pick(
        [
            fill(f"{patient.text} {was} {{}} by {doer.text}", verb.part, verb.ing),
            fill(f"{doer.text} {did} {{}} {patient.text}", verb.ing, verb.part),
            fill(f"{patient.text} {was} {{}} by {doer.text}", verb.part, mono.part),
            fill(f"{doer.text} {did} {{}} {g.adjunct(0.6)}", mono.ing, mono.part),
        ]
    )


@phenomenon("in", "ctrl")
def control(g: Grammar) -> Pair:
    """The higher verb decides the form of the lower one."""
    subject, (verb, rest) = g.np(), g.predicate()
    higher, good, bad = lower_verb(g, verb)
    return fill(f"{subject.text} {higher.past} {{}} {rest}", good, bad)


@phenomenon("in", "order")
def word_order(g: Grammar) -> Pair:
    """Determiner, adjective, noun, preposition, adverb, negation and object keep their places."""
    verb, (det, noun) = g.transitive(strict=False), g.np(name=0, adjective=0).text.split()
    object_, adjective, adverb = g.object(verb), g.pick(ADJECTIVES), g.pick(FREQUENCY)
    preposition, place = g.where().split(" ", 1)
    frame, a, b = g.pick(
        [
            (f"{det} {{}} {verb.past} {object_}", adjective, noun),
            (f"{{}} {verb.past} {object_}", det, noun),
            (f"{det} {noun} {verb.past} {object_} {{}}", preposition, place),
            (f"{det} {noun} {{}} {object_}", adverb, verb.past),
            (f"{det} {noun} {{}} {verb.base} {object_}", "did", "not"),
            (f"{det} {noun} {{}}", verb.past, object_),
        ]
    )
    return fill(frame, f"{a} {b}", f"{b} {a}")


@phenomenon("in", "case")
def pronoun_case(g: Grammar) -> Pair:
    """A pronoun is nominative as a subject and accusative elsewhere."""
    nominative, accusative = g.pick(PRONOUNS).split("/")
    other, person, (verb, rest) = g.np(), g.transitive("human"), g.predicate()
    if g.chance():
        form = g.pick([verb.past, f"will {verb.base}", f"did not {verb.base}"])
        return fill(f"{{}} {form} {rest}", nominative, accusative)
    frame = f"{other.text} {g.finite(person, other.plural)} {{}} {g.adjunct(0.4)}"
    if g.chance(0.4):
        frame = f"{other.text} {verb.past} {rest} {g.pick(PREPOSITIONS)} {{}}"
    return fill(frame, accusative, nominative)


@phenomenon("out", "agr-pp")
def agreement_across_phrase(g: Grammar) -> Pair:
    """The verb agrees with its subject, not with the noun of a phrase in between."""
    subject = g.np(name=0)
    attractor = g.np(plural=not subject.plural, name=0)
    frame = f"{subject.text} {g.pick(PREPOSITIONS)} {attractor.text} {{}}"
    return agreeing(g, frame, subject.plural)


@phenomenon("out", "agr-rel")
def agreement_across_relative(g: Grammar) -> Pair:
    """The verb agrees with its subject across a relative clause."""
    subject, verb = g.np(name=0), g.transitive("human")
    inner = g.np(plural=not subject.plural)
    frame = f"{subject.text} that {inner.text} {verb.present(inner.plural)} {{}}"
    return agreeing(g, frame, subject.plural)


@phenomenon("out", "exist")
def existential(g: Grammar) -> Pair:
    """After "there" the verb agrees with the noun phrase that follows it."""
    plural, forms = g.chance(), g.pick([("is", "are"), ("was", "were")])
    det = g.pick("some many several two three" if plural else "a")
    thing = g.np(g.pick("human animal thing food text"), plural, det)
    return fill(f"there {{}} {thing.text} {g.where()}", forms[plural], forms[not plural])


@phenomenon("out", "quest")
def question(g: Grammar) -> Pair:
    """In a question the auxiliary stands first and still decides the form of the verb."""
    subject, (verb, rest) = g.np(), g.predicate()
    word, good, bad = auxiliary(g, verb, subject.plural)
    return fill(f"{word} {subject.text} {{}} {rest} ?", good, bad)


@phenomenon("out", "gap-to")
def gap_in_infinitive(g: Grammar) -> Pair:
    """A question word leaves its gap in an infinitive too."""
    subject, verb, gapped = g.np(), g.transitive(), g.chance()
    phrases = "", g.object(verb)
    frame = f"did {subject.text} {g.verb(TO_VERBS).base} to {verb.base} {{}} ?"
    return fill(f"{verb.wh if gapped else ''} {frame}", *(phrases if gapped else phrases[::-1]))


@phenomenon("out", "ctrl-q")
def control_question(g: Grammar) -> Pair:
    """The higher verb of a question decides the form of the lower one."""
    subject, (verb, rest) = g.np(), g.predicate()
    higher, good, bad = lower_verb(g, verb)
    return fill(f"did {subject.text} {higher.base} {{}} {rest} ?", good, bad)


@phenomenon("out", "coord")
def coordination(g: Grammar) -> Pair:
    """Both goes with and, either with or."""
    subject, verb = g.np(), g.transitive(strict=False)
    first, good, bad = g.pick([("both", "and", "or"), ("either", "or", "and")])
    frame = f"{subject.text} {g.finite(verb, subject.plural)} {first} {g.object(verb)} {{}} "
    return fill(frame + g.object(verb), good, bad)


@phenomenon("out", "refl-far")
def distant_reflexive(g: Grammar) -> Pair:
    """A reflexive takes its antecedent from its own clause, not from the one above."""
    near, far = two_reflexives(g)
    frame = f"{far.text} {g.verb(BRIDGE).past} that {near.text} {g.transitive('human').past} {{}}"
    return fill(frame, near.reflexive, far.reflexive)


# ---------------------------------------------------------------------------------------------
# Corpus


def render(words: str) -> str:
    """Spell a string of words as a sentence: a or an, one space, a capital and a full stop."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", " ".join(words.split()))
    text = text.replace(" ?", "?")
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def pair(g: Grammar, function: Callable[[Grammar], Pair]) -> Pair:
    """A rendered pair of 4 to 14 words, now and then inside a larger sentence."""
    while True:
        good, bad = function(g)
        if not good.endswith("?") and g.chance(0.2):
            subject = g.np()
            prefix = f"{subject.text} {g.verb(BRIDGE).past} that"
            good, bad = f"{prefix} {good}", f"{prefix} {bad}"
        good, bad = render(good), render(bad)
        if good != bad and all(4 <= len(s.split()) <= 14 for s in (good, bad)):
            return good, bad


def labelled_corpus() -> Corpus:
    """The three splits as (code, label, sentence); of each pair one member, used once.

    Labels alternate within a code, so that half of every phenomenon is acceptable. The
    out-of-domain codes are the in-domain phenomena in new words, and constructions of their own.
    """
    inside, outside = PHENOMENA["in"], PHENOMENA["out"]
    known = {code: ("known", function) for code, function in inside.items()}
    new = {f"{code}-new": ("new", function) for code, function in inside.items()}
    new |= {code: ("all", function) for code, function in outside.items()}
    corpus, used = {}, set()
    for split, size in SIZES.items():
        codes = list((new if split.startswith("out") else known).items())
        grammars = {words: Grammar(f"{SEED} {split}", words) for words in ("known", "new", "all")}
        rows = []
        while len(rows) < size:
            turn, index = divmod(len(rows), len(codes))
            code, (words, function) = codes[index]
            label = (turn + index) % 2
            sentences = pair(grammars[words], function)
            if used.isdisjoint(sentences):
                used.update(sentences)
                rows.append((code, label, sentences[1 - label]))
        random.Random(SEED).shuffle(rows)
        corpus[split] = rows
    return corpus


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write the splits in CoLA's layout: code, label, ``*`` where unacceptable, sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in corpus.items():
        lines = (f"{code}\t{label}\t{'' if label else '*'}\t{s}\n" for code, label, s in rows)
        (folder / f"{split}.tsv").write_bytes("".join(lines).encode())


def pretraining_sentences(corpus: Corpus) -> list[str]:
    """Distinct acceptable sentences, none from a dev set and none that is labelled unacceptable."""
    g = Grammar(f"{SEED} pretraining", "all")
    functions = [f for domain in PHENOMENA.values() for f in domain.values()]
    banned = {
        sentence
        for split, rows in corpus.items()
        for _, label, sentence in rows
        if split.endswith("dev") or label == 0
    }
    seen: dict[str, None] = {}
    while len(seen) < PRETRAINING_SENTENCES:
        if g.chance(0.25):
            words = g.clause()
            if g.chance(0.3):
                words += f" {g.pick('and but because when')} {g.clause()}"
            sentence = render(words)
        else:
            sentence = pair(g, g.pick(functions))[0]
        if sentence not in banned and len(sentence.split()) <= 14:
            seen[sentence] = None
    return list(seen)


# ---------------------------------------------------------------------------------------------
# Tokenizer and model


def make_tokenizer(sentences: Sequence[str], folder: Path) -> None:
    """Train a byte-level BPE as GPT-2's and save it as a Hugging Face tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(sentences, VOCABULARY, special_tokens=[END], show_progress=False)
    with tempfile.TemporaryDirectory() as scratch:
        bpe.save_model(scratch)
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(Path(scratch) / name, folder / name)
    tokenizer = GPT2TokenizerFast.from_pretrained(
        folder, unk_token=END, bos_token=END, eos_token=END, model_max_length=512
    )
    tokenizer.save_pretrained(folder)


def documents(
    first: list[list[int]], later: list[list[int]], rng: random.Random, tokens_per_batch: int
) -> list[list[list[int]]]:
    """One epoch: the sentences shuffled into documents of 1 to 8, in batches of like length.

    Args:
        first: the token ids of each sentence where it begins a document.
        later: those of the same sentence after a space.
        rng: decides the documents and the order of the batches.
        tokens_per_batch: the most that a batch holds, padding included.
    """
    order = rng.sample(range(len(first)), len(first))
    made, start = [], 0
    while start < len(order):
        head, *rest = order[start : start + rng.choice([1, 1, 2, 3, 4, 6, 8])]
        made.append(first[head] + [token for i in rest for token in later[i]])
        start += 1 + len(rest)
    made.sort(key=lambda document: len(document) + rng.random())
    batches = [[]]
    for document in made:
        if (len(document) + 1) * (len(batches[-1]) + 1) > tokens_per_batch:
            batches.append([])
        batches[-1].append(document)
    rng.shuffle(batches)
    return batches


def pretrain(sentences: Sequence[str], folder: Path) -> None:
    """Train the language model on documents of several sentences and save it."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    first, later = (tokenizer([before + s for s in sentences])["input_ids"] for before in ("", " "))
    batches = [b for _ in range(EPOCHS) for b in documents(first, later, rng, TOKENS_PER_BATCH)]
    config = GPT2Config(
        **SHAPE, vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    started, running = time.time(), 0.0
    for step, batch in enumerate(batches, start=1):
        warm_up, cool_down = step / 100, (1 - (step - 1) / len(batches)) / 0.6
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, warm_up, cool_down)
        longest = max(map(len, batch))
        inputs = torch.tensor([d + [end] * (longest - len(d)) for d in batch])
        targets = torch.tensor([d[1:] + [end] + [-100] * (longest - len(d)) for d in batch])
        logits = model(inputs).logits  # (documents, longest, vocabulary)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        if step % 100 == 0 or step == len(batches):
            seconds, mean = time.time() - started, running / (step % 100 or 100)
            print(f"step {step}/{len(batches)}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            running = 0.0
    model.save_pretrained(folder)


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    parser.add_argument("--corpus_only", action="store_true", help="only the TSV files, into --out")
    args = parser.parse_args()
    corpus = labelled_corpus()
    if args.corpus_only:
        write_corpus(corpus, args.out)
        return
    write_corpus(corpus, args.out / "corpus" / "raw")
    sentences = pretraining_sentences(corpus)
    make_tokenizer(sentences, args.out)
    pretrain(sentences, args.out)


if __name__ == "__main__":
    main()
