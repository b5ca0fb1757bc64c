"""What does a report tell? Tables, which are data frames of words, and findings in sentences."""

import json
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from pandas import DataFrame
from pandas import Series as Column

from support import PROJECT
from support.corpus import COLA_SHA256, DEV, SPLITS, TRAIN, Row, file_fingerprints, read_rows
from support.errors import UserError
from support.options import published
from support.reporting.finished import DEV_SETS, Predictions, Run, Series
from support.reporting.metrics import matthews_corrcoef, read_metrics, summary
from support.reporting.statistics import (
    Estimate,
    agreement,
    calibration_error,
    difference,
    mcnemar,
    p_value,
    score,
)

RESULT = ["run", "dev set", "accuracy", "95% interval", "majority", "MCC", "95% of MCC"]
PUBLISHED = DataFrame([
    ("published LoRA gpt2", DEV, "79.70%", "76.1 to 82.9", "69.26%", "–", ""),
    ("published LoRA gpt2-medium", DEV, "82.92%", "79.5 to 85.9", "69.26%", "–", ""),
    ("best LoRA gpt2-medium", DEV, "84.06%", "", "69.26%", "–", ""),
    ("published distil", DEV, "72.45%", "", "69.26%", "–", ""),
    ("published rnn", DEV, "69.45%", "65.4 to 73.2", "69.26%", "–", ""),
], columns=RESULT)  # fmt: skip
PUBLISHED_CAPTION = """Then the published; "best" is the best that anyone has reported for the same
recipe."""
SOURCES = {"edits": "edited", "written": "written by the base"}
PARTS = ("arguments", "training", "base", "teacher", "hardware", "versions", "data", "command")
SMALLEST_SOURCE = 20  # sentences; smaller ones are put together


# ---------------------------------------------------------------------------------------------
# What was run


def facts_table(group: list[Series]) -> DataFrame:
    """Tell what the runs of one variant were trained on, for how long, and what was kept."""
    table = {}
    for series in group:
        m = series.metrics
        options, training = published(series.mode) | m["arguments"], m["data"][TRAIN]["sentences"]
        held_out, more = options.get("held_out") or 0, options.get("transfer_size") or 0
        source, watched = SOURCES.get(str(options.get("transfer_source"))), options["monitor"]
        start = base_words(m["base"]) if series.mode == "LoRA" else "random weights"
        teachers = options.get("embedding_start") == "teacher"
        minutes = np.mean([run.metrics["training"]["seconds"] for run in series.runs]) / 60
        table[series.mode] = {
            "starts from": f"{start}, the embedding from the teacher's" if teachers else start,
            "parameters": f"{m['parameters']['total'] / 1e6:.2f}M",
            "of them trained": f"{m['parameters']['trainable'] / 1e6:.2f}M",
            "labelled sentences": f"{training - held_out:,} of {training:,}",
            "labelled by the teacher alone": f"{more:,} {source}" if more else "none",
            "teacher": teacher_words(series),
            "sentences an epoch": f"{sentences_an_epoch(series):,}",
            "epochs": span(series, "epochs"),
            "optimiser steps": span(series, "steps"),
            "epoch kept": f"{span(series, 'best_epoch')}, "
            + ("the last" if watched == "none" else f"the best {watched} on {DEV}"),
            "threshold": own_threshold(series, held_out),
            "minutes of training": f"{minutes:.1f}",
            "not as published": ", ".join(differences_from_published(series)) or "nothing",
        }
    return DataFrame(table).rename_axis(" ").reset_index()


def teacher_words(series: Series) -> str:
    """Return the teachers' folders; of a single one whose run is on disk also what it scores."""
    told = (run.metrics.get("teacher") for run in series.runs)
    folders = sorted({Path(str(teacher.get("folder"))) for teacher in told if teacher})
    words = ", ".join(folder.name for folder in folders) or "none"
    try:
        return f"{words}: {summary(read_metrics(*folders)[DEV])}" if len(folders) == 1 else words
    except UserError:
        return words


def own_threshold(series: Series, held_out: int) -> str:
    """Tell from which probability on a model says "acceptable", and by which rule."""
    decision = series.runs[0].predictions[DEV].decision
    if not decision.thresholds:
        return "p = 0.50"
    p = decision.p_acceptable(decision.threshold)
    return f"p = {p:.2f} ({decision.rule}), set on the {held_out} held out"


def sentences_an_epoch(series: Series) -> int:
    """Return the size of the training split, less what was held out, with the transfer set."""
    options = series.metrics["arguments"]
    more = (options.get("transfer_size") or 0) - (options.get("held_out") or 0)
    return series.metrics["data"][TRAIN]["sentences"] + more


def effort(one: Series, two: Series, sr_nos: list[int]) -> str:
    """Tell what two models saw in the runs that are compared."""
    return ", ".join(
        f"{series.mode} saw {sentences_an_epoch(series):,} sentences an epoch in "
        f"{span(series, 'steps', sr_nos)} steps"
        for series in (one, two)
    )


def span(series: Series, key: str, sr_nos: list[int] | None = None) -> str:
    """Return a figure of the training, the smallest and the largest of several runs."""
    values = [run.metrics["training"][key] for run in series.runs_of(sr_nos)]
    low, high = f"{min(values):,}", f"{max(values):,}"
    return low if low == high else f"{low} to {high}"


def differences_from_published(series: Series) -> list[str]:
    """Return why runs may not be read against the published: their base, corpus or settings."""
    bases = [run.metrics["base"] for run in series.runs]
    precisions = {str(run.metrics["identity"].get("precision", "fp32")) for run in series.runs}
    options = published(series.mode)
    given = options | series.metrics["arguments"]  # what an older run lacks came later
    differing = list(dict.fromkeys(f"base {base_words(b)}" for b in bases if not is_published(b)))
    differing += [] if is_cola(series) else [f"corpus {series.metrics['data']['name']}"]
    differing += [f"precision {precision}" for precision in sorted(precisions - {"fp32"})]
    return differing + [f"{name} {given[name]}" for name in options if given[name] != options[name]]


def is_published(base: dict) -> bool:
    """Return whether a base is one of the published runs': the hub's, since a folder can be any."""
    name = base["name"].removeprefix("openai-community/")
    return name in ("gpt2", "gpt2-medium") and base.get("kind") == "hub"


def base_words(base: dict) -> str:
    """Return a base's name as the user gave it, and whether it was a folder."""
    return base["name"] + " (a folder)" * (base.get("kind") == "folder")


def is_cola(series: Series) -> bool:
    """Return whether a corpus is CoLA."""
    return known_corpus(series) == "CoLA"


def known_corpus(series: Series) -> str:
    """Return "CoLA" or "nano" where a corpus is CoLA or nano's own; else nothing.

    It is known by its files. A run of an earlier version does not record them: there CoLA is known
    by its sizes, and nano's corpus by its place in this project.
    """
    data = series.metrics["data"]
    if "files" in data:
        known = {"CoLA": COLA_SHA256, "nano": file_fingerprints(PROJECT / "nano" / "corpus")}
        return next((name for name, files in known.items() if files == data["files"]), "")
    if [data[split]["sentences"] for split in SPLITS] == [8551, 527, 516]:
        return "CoLA"
    return "nano" if data["name"] == "nano/corpus" else ""


def settings_table(shown: list[Series]) -> DataFrame:
    """Tell what metrics.json says of the runs, once where it says the same of several."""
    rows = []
    for part, series in product(PARTS, shown):
        for run in series.runs:
            value = run.metrics.get(part)
            if part == "arguments":
                value = dict(sorted((published(series.mode) | value).items()))
            words = json.dumps(value, ensure_ascii=False).strip("{}").replace('"', "")
            rows.append((part, f"{series.name} {run.metrics['sr_no']}", words))
    table, runs = DataFrame(rows, columns=["part", "of", "what it says"]), len(rows) // len(PARTS)
    names = table.groupby(["part", "what it says"], sort=False)["of"]
    merged = names.agg(lambda names: "all" if len(names) == runs else "; ".join(names))
    return merged.reset_index()[[*table.columns]]


# ---------------------------------------------------------------------------------------------
# Results


def grouped(shown: list[Series], by: str) -> dict[str, list[Series]]:
    """Return the runs of each "corpus", whose results may stand in one table, or "variant"."""
    groups: dict[str, list[Series]] = {}
    for series in shown:
        groups.setdefault(getattr(series, by), []).append(series)
    return groups


def corpus_facts(series: Series) -> str:
    """Tell a corpus' name and sizes."""
    data = series.metrics["data"]
    train, *dev = (f"{data[split]['sentences']:,}" for split in SPLITS)
    return f"{data['name']}: {train} training sentences, dev sets of {' and '.join(dev)}."


def result_table(shown: list[Series]) -> DataFrame:
    """Tell accuracy, never without majority baseline and MCC; of several runs mean ± deviation."""
    rows = []
    for split, series in product(DEV_SETS, shown):
        s = series.scores[split]
        accuracy = spread(100 * s.accuracies, ".2f", "%"), interval(s.accuracy, ".1f", 100)
        mcc = spread(s.mccs, ".3f"), s.remark.strip(" ()") or interval(s.mcc, ".2f")
        rows.append((series.name, split, *accuracy, f"{s.majority:.2%}", *mcc))
    return DataFrame(rows, columns=RESULT)


def comparison_table(shown: list[Series]) -> str:
    """Return the results as plain text, a block a corpus."""
    found = map(result_table, grouped(shown, "corpus").values())
    return "\n\n".join(table.to_string(index=False) for table in found)


def spread(values: np.ndarray, form: str, unit: str = "") -> str:
    """Return a value, or the mean and the standard deviation of several."""
    more = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{more}{unit}"


def interval(estimate: Estimate, form: str, factor: float = 1) -> str:
    """Return both ends."""
    return f"{factor * estimate.low:{form}} to {factor * estimate.high:{form}}"


def findings(group: list[Series]) -> str:
    """Tell what the results of one variant come to on in_domain_dev."""
    sentences = []
    for series in group:
        s = series.scores[DEV]
        by = 100 * (s.accuracy.value - s.majority)
        sure = s.accuracy.low > s.majority or s.accuracy.high < s.majority
        sentences.append(
            f"{series.name} is right in {s.accuracy.value:.2%} (MCC {s.mcc.value:.3f}{s.remark}), "
            f"{abs(by):.1f} points {'above' if by > 0 else 'below'} the majority baseline"
            f"{'' if sure else ', which lies within its interval'}."
        )
    for one, two, sr_nos in pairs_of(group):
        if len(sr_nos) > 1:
            answers = one.answers(DEV, sr_nos), two.answers(DEV, sr_nos)
            accuracy, mcc = difference(one.labels(DEV), *answers)
            sentences.append(
                f"{one.mode} against {two.mode}: {100 * accuracy.value:+.1f} points "
                f"({interval(accuracy, '+.1f', 100)}) and {mcc.value:+.2f} of MCC "
                f"({interval(mcc, '+.2f')}), where {effort(one, two, sr_nos)}."
            )
    return " ".join(sentences)


def run_table(group: list[Series]) -> DataFrame:
    """Tell each run's scores."""
    rows = []
    for run in (run for series in group for run in series.runs):
        training = run.metrics["training"]
        kept = f"{training['best_epoch']} of {training['epochs']}"
        scores = (summary(run.metrics[split]) for split in DEV_SETS)
        rows.append((run.mode, run.metrics["sr_no"], *scores, kept))
    return DataFrame(rows, columns=["run", "sr_no", *DEV_SETS, "epoch kept"])


def pairs_of(group: list[Series]) -> Iterator[tuple[Series, Series, list[int]]]:
    """Yield LoRA and distil, distil and rnn, of one corpus, and the seeds that both have."""
    for one, two in pairwise(group):
        sr_nos = [number for number in one.sr_nos if number in two.sr_nos]
        if sr_nos and one.corpus == two.corpus:
            yield one, two, sr_nos


def paired_table(group: list[Series]) -> DataFrame:
    """Tell differences on the same sentences and seeds; below each pair, what either saw."""
    rows, several = [], any(len(sr_nos) > 1 for *_, sr_nos in pairs_of(group))
    heads = ["accuracy by", "95% interval" if several else "right alone", "p", "MCC by"]
    heads += ["95% of MCC", "p of MCC"] if several else []
    for one, two, sr_nos in pairs_of(group):
        cells_of = difference_cells if len(sr_nos) > 1 else mcnemar_cells
        for split in DEV_SETS:
            pair = " against ".join(s.mode + s.scores[split].remark for s in (one, two))
            answers = one.answers(split, sr_nos), two.answers(split, sr_nos)
            rows.append([pair, split, *cells_of(one.labels(split), *answers)[: len(heads)]])
        seeds = "" if one.sr_nos == two.sr_nos else f"; sr_no {', '.join(map(str, sr_nos))} alone"
        rows.append(["", effort(one, two, sr_nos) + seeds, *[None] * len(heads)])
    return DataFrame(rows, columns=["pair", "dev set", *heads] if rows else [])


def difference_cells(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """Return the `difference` of answers (runs, sentences), with intervals and p."""
    accuracy, mcc = difference(labels, first, second)
    cells = [f"{100 * accuracy.value:+.2f}", interval(accuracy, "+.1f", 100), p_value(accuracy.p)]
    return [*cells, f"{mcc.value:+.3f}", interval(mcc, "+.2f"), p_value(mcc.p)]


def mcnemar_cells(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """Return the difference of answers (1, sentences), what one alone got right, McNemar's p."""
    right, other = first == labels, second == labels
    only = int((right & ~other).sum()), int((other & ~right).sum())
    accuracy = f"{100 * (right.mean() - other.mean()):+.2f}"
    mcc = matthews_corrcoef(labels, first) - matthews_corrcoef(labels, second)
    alone = "{} against {} alone".format(*only)
    return [accuracy, alone, p_value(mcnemar(*only)), f"{mcc.item():+.3f}", "–", "–"]


def confidence_table(group: list[Series]) -> DataFrame:
    """Tell how far confidence is from accuracy, and how often a student answers as LoRA does."""
    rows, lora = [], group[0]
    for series, split in product(group, DEV_SETS):
        p = series.p_acceptable(split)
        errors = np.array([calibration_error(series.labels(split), each) for each in p])
        row = {
            "run": series.mode + series.scores[split].remark,
            "dev set": split,
            "mean confidence": spread(100 * np.maximum(p, 1 - p).mean(axis=1), ".1f", "%"),
            "calibration error": spread(errors, ".3f"),
        }
        if lora.mode == "LoRA" != series.mode and series.corpus == lora.corpus:
            teachers = [(teacher_of(run, lora.runs), run) for run in series.runs]
            pairs = [(t.predictions[split], run.predictions[split]) for t, run in teachers if t]
            row |= agreement_cells(pairs) if pairs else {}
        rows.append(row)
    return DataFrame(rows)


def teacher_of(run: Run, lora: list[Run]) -> Run | None:
    """Return a student's teacher by its fingerprint, or by its folder's name if it names none.

    A student without a teacher is compared with the LoRA run of its seed.
    """
    teacher = run.metrics.get("teacher")
    if not teacher:
        by_seed = {other.metrics["sr_no"]: other for other in lora}
        return by_seed.get(run.metrics["sr_no"])
    by_name = {other.metrics.get("adapter") or other.folder.name: other for other in lora}
    name = Path(str(teacher.get("folder"))).name
    return by_name.get(str(teacher.get("fingerprint"))) or by_name.get(name)


def agreement_cells(pairs: list[tuple[Predictions, Predictions]]) -> dict[str, str]:
    """Return how often two models give the same answer, and how alike their margins are."""
    shares, kappas = np.array([agreement(one.answers, two.answers) for one, two in pairs]).T
    correlations = np.array([np.corrcoef(one.margins, two.margins)[0, 1] for one, two in pairs])
    return {
        "answers as LoRA": spread(100 * shares, ".1f", "%"),
        "kappa": spread(kappas, ".3f"),
        "correlation of margins": spread(correlations, ".3f"),
    }


def dev_rows(series: Series) -> dict[str, list[Row]]:
    """Read the dev sentences where the run says that its corpus is; they have the run's labels."""
    folder = Path(series.metrics["data"]["folder"], "raw")
    sentences = {split: read_rows(folder / f"{split}.tsv") for split in DEV_SETS}
    for split, read in sentences.items():
        if [row.label for row in read] != series.labels(split).tolist():
            raise UserError(f"{folder / split}.tsv: not the corpus of {series.runs[0].folder}")
    return sentences


def lines_in_training(series: Series) -> dict[str, list[int]]:
    """Return the lines of each dev set whose sentence stands in the training split too.

    The text is the same, character by character; the label may be another.
    """
    data, dev = series.metrics["data"], dev_rows(series)
    read = read_rows(path := Path(data["folder"], "raw", f"{TRAIN}.tsv"))
    counts = len(read), sum(row.label for row in read)
    if counts != (data[TRAIN]["sentences"], data[TRAIN].get("acceptable")):
        raise UserError(f"{path}: not the corpus of {series.runs[0].folder}")
    known = {row.sentence for row in read}
    return {
        split: [line for line, row in enumerate(rows, start=1) if row.sentence in known]
        for split, rows in dev.items()
    }


def scores_without(lines: dict[str, list[int]], named: dict[str, Series]) -> list[str]:
    """Tell for each dev set the scores without some of its lines, those that training had too."""
    sentences = []
    for split, numbers in lines.items():
        labels = next(iter(named.values())).labels(split)
        kept = np.delete(np.arange(len(labels)), np.array(numbers, int) - 1)
        if not numbers or not len(kept):
            how_many = "Every" if numbers else "No"
            sentences.append(f"{how_many} sentence of {split} stands in the training split too.")
            continue
        found = {n: score(labels[kept], s.answers(split)[:, kept]) for n, s in named.items()}
        cells = "; ".join(
            f"{name} {spread(100 * s.accuracies, '.2f', '%')}, "
            f"MCC {spread(s.mccs, '.3f')}{s.remark}"
            for name, s in found.items()
        )
        sentences.append(
            f"Without the {len(numbers)} of {len(labels)} sentences of {split} that the training "
            f"split has too: {cells}; majority baseline {next(iter(found.values())).majority:.2%}."
        )
    return sentences


def without_training(group: list[Series]) -> list[str]:
    """Tell the scores of one corpus without the dev sentences that the training split has too."""
    try:
        lines = lines_in_training(group[0])
    except UserError as error:
        return [f"Whether the training split has sentences of the dev sets is not known: {error}."]
    return scores_without(lines, {series.name: series for series in group})


def source_table(group: list[Series]) -> DataFrame:
    """Tell accuracy and MCC on each source of the dev sentences, the small sources together."""
    rows, first = [], group[0]
    try:
        sentences = dev_rows(first)
    except UserError as error:
        return DataFrame([{"dev set": "–", "source": f"not known: {error}", "sentences": ""}])
    for split, read in sentences.items():
        sources = Column([row.source for row in read])
        small = sources.map(sources.value_counts()) < SMALLEST_SOURCE
        sources[small] = f"{sources[small].nunique()} others"
        for source, size in sources.value_counts().items():
            inside = (sources == source).to_numpy()
            labels = first.labels(split)[inside]
            row = {
                "dev set": split,
                "source": f"{source:.12}",
                "sentences": size,
                "majority": f"{max(labels.mean(), 1 - labels.mean()):.1%}",
            }
            for series in group:
                answers = series.answers(split)[:, inside]
                mcc = matthews_corrcoef(labels, answers).mean()
                row[f"{series.mode}, MCC"] = f"{(answers == labels).mean():.1%}, {mcc:.2f}"
            rows.append(row)
    return DataFrame(rows)
