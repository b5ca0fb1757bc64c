"""How are judgements of sentences shown in a terminal, and to a program?"""

import json
from collections.abc import Iterator

from torch import Tensor

from support.decisions import Decision, margins_of
from support.options import RULES


def table(sentences: list[str], judged: dict[str, list[dict]]) -> Iterator[str]:
    """Yield the lines of a table: one model's judgements, or those of several side by side."""
    words = ("unacceptable", "acceptable")
    if len(judged) == 1:
        heads, form = ["p(acceptable)  judgement   "], "{:>13.3f}  {:<12}"
    else:
        heads, form = [f"{name:<18}" for name in judged], "{:.3f} {:<12}"
    yield "  ".join([*heads, "sentence"])
    for sentence, *row in zip(sentences, *judged.values(), strict=True):
        cells = [form.format(answer["p_acceptable"], words[answer["label"]]) for answer in row]
        yield "  ".join([*map(str.ljust, cells, map(len, heads)), sentence])


def json_lines(sentences: list[str], judged: dict[str, list[dict]]) -> Iterator[str]:
    """Yield a JSON object for each sentence, of several models with an entry each."""
    for sentence, *row in zip(sentences, *judged.values(), strict=True):
        answer = {"models": dict(zip(judged, row, strict=True))} if len(row) > 1 else row[0]
        yield json.dumps({"sentence": sentence, **answer}, ensure_ascii=False)


def judgements(logits: Tensor, decision: Decision) -> list[dict]:
    """Return what a model's logits (sentences, 2) say of each sentence, as --json has it."""
    margins = margins_of(logits)
    columns = decision.answers(margins), decision.p_acceptable(margins), logits
    names = ("label", "p_acceptable", "logits")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def threshold_note(name: str, decision: Decision) -> str:
    """Return from which p on a model says "acceptable"; nothing where that is above 0.5."""
    if decision.rule in (None, "accuracy"):
        return ""
    ps = {rule: decision.p_acceptable(decision.thresholds[rule]) for rule in RULES}
    return (
        f"note: {name} calls a sentence acceptable from p = {ps[decision.rule]:.2f} on "
        f"({decision.rule}); with --threshold accuracy from {ps['accuracy']:.2f}"
    )
