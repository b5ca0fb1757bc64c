"""What does a reader see in a browser? One HTML file, complete in itself, with every judgement."""

from base64 import b64encode
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from support.files import write_bytes
from support.reporting.finished import Experiment, Rows
from support.reporting.metrics import classes_of
from support.reporting.tables import Section

WIDEST = 1_000_000  # hundredths; a margin beyond is shown as this one


def write_page(path: Path, sections: list[Section], corpora: list[dict[str, Any]]) -> None:
    """Write a report's sections, and below them what `judged_corpus` has of each, as one HTML file.

    No text is markup: Jinja2 escapes it, in the data as \\u003c, and the script sets it as text.
    """
    room = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    room.loader = FileSystemLoader(Path(__file__).parent)
    room.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    room.filters["base64"] = lambda png: b64encode(png).decode()
    template = room.get_template("page.html")
    page = template.render(sections=sections, corpora=corpora)
    write_bytes(path, page.encode("utf-8", "replace"))


def judged_corpus(group: list[Experiment], corpus: Rows, fault: str) -> dict[str, Any]:
    """Return what models made of the sentences of a corpus, and these, or why they are not there.

    The dev sets stand one behind the other, in the order of ``dev_sets``.
    """
    first, margins = group[0], [hundredths(experiment) for experiment in group]
    alike = len({experiment.variant for experiment in group}) == 1
    widest = max(np.abs(runs).max() for runs in margins)
    step = 5 * ceil((widest + 1) / 500)
    edge = step * ceil((widest + 1) / step)  # beyond every margin
    rows = [row for split in first.dev_sets for row in corpus[split]] if corpus else []
    remedy = "Without the corpus there are line numbers; with it, report shows the sentences."
    return {
        "name": f"{first.metrics['data']['name']}, {first.variant if alike else 'several bases'}",
        "dev_sets": first.dev_sets,
        "classes": classes_of(first.metrics),
        "sizes": [len(first.labels(split)) for split in first.dev_sets],
        "majority": [first.scores[split].majority for split in first.dev_sets],
        "label": [int(label) for split in first.dev_sets for label in first.labels(split)],
        "slider": {"min": -edge, "max": edge, "step": step},
        "models": [
            {
                "name": experiment.mode if alike else f"{experiment.mode} {experiment.variant}",
                "margins": runs.tolist(),
            }
            for experiment, runs in zip(group, margins, strict=True)
        ],
        "missing": "" if rows else f"{fault}. {remedy}",
        "source": [row.source for row in rows] if any(row.source for row in rows) else None,
        "text": [row.sentence for row in rows] or None,
    }


def hundredths(experiment: Experiment) -> np.ndarray:
    """Return how far margins (runs, sentences) are above the model's own threshold, in hundredths.

    They are rounded so that no answer changes: what is above 0 stays so, and nothing else gets so.
    """
    margins = np.stack([
        np.concatenate([found.margins - found.decision.threshold for found in parts])
        for parts in (run.predictions.values() for run in experiment.runs)
    ])  # fmt: skip
    rounded = np.rint(np.clip(100 * margins, -WIDEST, WIDEST))
    return np.where(margins > 0, np.maximum(rounded, 1), np.minimum(rounded, 0)).astype(int)
