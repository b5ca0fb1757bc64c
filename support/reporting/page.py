"""What does a reader see in a browser? One HTML file, complete in itself, with every judgement."""

from collections.abc import Iterable, Iterator
from math import ceil
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pandas import DataFrame, concat

from support.corpus import DEV
from support.errors import UserError
from support.files import write_bytes
from support.reporting import tables
from support.reporting.finished import DEV_SETS, Series, read_history
from support.reporting.metrics import matthews_corrcoef

WIDEST = 1_000_000  # hundredths; a margin beyond is shown as this one
CURVES = {  # the columns of history.csv in each picture, with their looks
    "loss": {"train": "train_loss", "accuracy": "val_loss"},
    "accuracy": {"train": "train_accuracy", "accuracy": "val_accuracy", "mcc": "val_mcc"},
}
HEADS = ["model", "accuracy", "best accuracy at", "MCC", "best MCC at"]
HEADS += ["acceptable ✓", "acceptable ✗", "unacceptable ✓", "unacceptable ✗"]


def write_page(
    path: Path, title: str, shown: list[Series], lead: list[str], limits: list[str]
) -> None:
    """Write what the runs judged, with paragraphs of text before and behind, as one HTML file.

    No text is markup: Jinja2 escapes it, in the data as \\u003c, and the script sets it as text.
    """
    room = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    room.loader = FileSystemLoader(Path(__file__).parent)
    room.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    corpora, variants = (tables.grouped(shown, by) for by in ("corpus", "variant"))
    page = room.get_template("page.html").render(
        title=title,
        lead=lead,
        limits=limits,
        results=[table for group in corpora.values() for table in compared(group)],
        runs=[(name, cells(tables.run_table(alike))) for name, alike in variants.items()],
        corpora=[judgements(group) for group in corpora.values()],
        dev_sets=DEV_SETS,
        heads=HEADS,
    )
    write_bytes(path, page.encode("utf-8", "replace"))


def compared(group: list[Series]) -> Iterator[tuple[str, list[list[str]], list[str]]]:
    """Yield the tables on the models of one corpus, each with its caption and what stands below."""
    result, caption = tables.result_table(group), tables.corpus_facts(group[0])
    if tables.is_cola(group[0]):
        alike = [series.name for series in group if not tables.differences_from_published(series)]
        comparable = ", ".join(alike) or "none"
        caption += f" {tables.PUBLISHED_CAPTION} Comparable with them: {comparable}."
        result = concat([result, tables.PUBLISHED])
    yield caption, cells(result), tables.without_training(group)
    for variant, alike in tables.grouped(group, "variant").items():
        caption = f"{variant}: pairs; of a single run McNemar's p."
        yield caption, cells(tables.paired_table(alike)), []


def cells(frame: DataFrame) -> list[list[str]]:
    """Return a table's heads and rows as text; of one without rows nothing."""
    rows = frame.fillna("").astype(str).to_numpy().tolist()
    return [[*frame], *rows] if rows else []


# ---------------------------------------------------------------------------------------------
# What the script shows


def judgements(group: list[Series]) -> dict[str, Any]:
    """Return the dev sentences of one corpus, and what its models made of them.

    The dev sets stand one behind the other, in the order of `DEV_SETS`.
    """
    first, margins = group[0], [hundredths(series) for series in group]
    alike = len(tables.grouped(group, "variant")) == 1
    sizes = [len(first.labels(split)) for split in DEV_SETS]
    widest = max(np.abs(runs).max() for runs in margins)
    step = 5 * ceil((widest + 1) / 500)
    ends = ceil((widest + 1) / step)  # beyond every margin
    thresholds = step * np.arange(-ends, ends + 1)
    corpus = {
        "name": f"{first.metrics['data']['name']}, {first.variant if alike else 'several bases'}",
        "sizes": sizes,
        "label": [int(label) for split in DEV_SETS for label in first.labels(split)],
        "slider": {"min": int(thresholds[0]), "max": int(thresholds[-1]), "step": step},
        "models": [
            {
                "name": series.mode if alike else f"{series.mode} {series.variant}",
                "margins": runs.tolist(),
                "swept": [
                    swept(series.labels(split), part, thresholds)
                    for split, part in zip(DEV_SETS, np.split(runs, [sizes[0]], 1), strict=True)
                ],
                "curves": [(what, curves(series, what)) for what in CURVES],
            }
            for series, runs in zip(group, margins, strict=True)
        ],
        "missing": "",
    }
    try:
        rows = [row for read in tables.dev_rows(first).values() for row in read]
    except UserError as error:
        remedy = "Without the corpus there are line numbers; with it, report shows the sentences."
        return corpus | {"missing": f"{error}. {remedy}"}
    return corpus | {"source": [r.source for r in rows], "text": [r.sentence for r in rows]}


def hundredths(series: Series) -> np.ndarray:
    """Return how far margins (runs, sentences) are above the model's own threshold, in hundredths.

    They are rounded so that no answer changes: what is above 0 stays so, and nothing else gets so.
    """
    margins = np.stack([
        np.concatenate([found.margins - found.decision.threshold for found in parts])
        for parts in ([run.predictions[split] for split in DEV_SETS] for run in series.runs)
    ])  # fmt: skip
    rounded = np.rint(np.clip(100 * margins, -WIDEST, WIDEST))
    return np.where(margins > 0, np.maximum(rounded, 1), np.minimum(rounded, 0)).astype(int)


def swept(labels: np.ndarray, margins: np.ndarray, thresholds: np.ndarray) -> dict[str, Any]:
    """Draw accuracy and MCC by threshold, means over the runs, and mark the best of each.

    Margins (runs, sentences) and thresholds are in hundredths.
    """
    answers = [(margins > threshold).astype(int) for threshold in thresholds]
    accuracy = [(given == labels).mean() for given in answers]
    mcc = [matthews_corrcoef(labels, given).mean() for given in answers]
    lines = [("accuracy", points(thresholds / 100, accuracy))]
    lines += [("mcc", points(thresholds / 100, mcc))]
    best = [max(line, key=itemgetter(1)) for _, line in lines]
    lines += [("drop", [[threshold, 0], [threshold, value]]) for threshold, value in best]
    return drawing(labels, lines, best)


def curves(series: Series, what: str) -> dict[str, Any]:
    """Draw loss or accuracy by epoch, of each run and of all as far as they go; mark those kept."""
    kept = [run.metrics["training"]["best_epoch"] for run in series.runs]
    read = [read_history(run.folder, best) for run, best in zip(series.runs, kept, strict=True)]
    lines, epochs = [], range(1, 1 + max(map(len, read)))
    for look, column in CURVES[what].items():
        for table in read:
            lines.append((f"{look} run", points(epochs, table[column])))
        common = DataFrame([table[column] for table in read]).mean(skipna=False).dropna()
        lines.append((look, points(epochs, common)))
    scores = [table[CURVES[what]["accuracy"]][n - 1] for table, n in zip(read, kept, strict=True)]
    return drawing(series.labels(DEV) if what == "accuracy" else None, lines, points(kept, scores))


def points(xs: Iterable[float], ys: Iterable[float]) -> list[list[float]]:
    """Return points, as many as there are of the fewer."""
    return [[round(float(x), 2), round(float(y), 4)] for x, y in zip(xs, ys, strict=False)]


def drawing(labels: np.ndarray | None, lines: list[tuple[str, list]], marks: list) -> dict:
    """Return lines by their looks, and points, with their span; for labels the baseline too."""
    xs, ys = np.concatenate([line for _, line in lines]).T
    x, y = [min(xs.min(), 0), xs.max()], [min(ys.min(), 0), max(ys.max(), 1)]
    if labels is not None:
        level = max(labels.mean(), 1 - labels.mean())
        lines = [("majority", points(x, [level, level])), *lines]
    return {"x": x, "y": y, "lines": lines, "marks": marks}
