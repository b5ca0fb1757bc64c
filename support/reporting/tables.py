"""What does a report tell, in rows of strings, the headings first?"""

import json
import textwrap
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from support.corpus import DEV, SPLITS
from support.errors import UserError
from support.reporting.finished import DEV_SETS, Series, read_sources
from support.reporting.inference_speed import measure_inference
from support.reporting.metrics import matthews_corrcoef, summary
from support.reporting.statistics import Estimate, agreement, calibration_error, difference, mcnemar
from support.runs.folder import LATER

Rows = list[tuple[str, ...]]  # of a table, the headings first
PUBLISHED = [  # rows as of `result_rows`; "best" is the best by anyone for the same recipe
    ("published LoRA gpt2", DEV, "CoLA", "79.70%", "76.1 to 82.9", "69.26%", "–", ""),
    ("published LoRA gpt2-medium", DEV, "CoLA", "82.92%", "79.5 to 85.9", "69.26%", "–", ""),
    ("best LoRA gpt2-medium", DEV, "CoLA", "84.06%", "", "69.26%", "–", ""),
    ("published distil", DEV, "CoLA", "72.45%", "", "69.26%", "–", ""),
    ("published rnn", DEV, "CoLA", "69.45%", "65.4 to 73.2", "69.26%", "–", ""),
]
RECIPE = {
    "batch_size": 128, "lr": 1e-3, "monitor": "accuracy", "max_steps": None,
    "lr_schedule": "constant",
}  # fmt: skip
OF_LORA = {"lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0}
OF_DISTIL = {
    "kd_temperature": 2, "kd_alpha": 0.5, "transfer_size": 0, "hint_weight": 0,
    "embedding_start": "random",
}  # fmt: skip
OF_STUDENTS = {"epochs": 5, "student_width": 768, "student_dropout": 0, "held_out": 0}
PUBLISHED_RECIPES = {
    "LoRA": {**RECIPE, "epochs": 10, **OF_LORA},
    "distil": {**RECIPE, **OF_STUDENTS, **OF_DISTIL},
    "rnn": {**RECIPE, **OF_STUDENTS},
}
PARTS = ("arguments", "training", "base", "teacher", "hardware", "versions", "data", "command")
RATE = "sentences_per_second"
SMALLEST_SOURCE = 20  # sentences; smaller ones are put together


# ---------------------------------------------------------------------------------------------
# What was run


def trained_rows(found: list[Series]) -> Rows:
    """What was trained on what."""
    rows = [("run", "starts from", "parameters", "trained", "corpus", "sentences", "dev sets")]
    for series in found:
        m = series.metrics
        sizes = [f"{m['data'][split]['sentences']:,}" for split in SPLITS]
        more = m["arguments"].get("transfer_size")
        train = f"{sizes[0]} + {more:,} the teacher's" if more else sizes[0]
        start = m["base"]["name"] if series.mode == "LoRA" else "random weights"
        total, trained = (m["parameters"][key] for key in ("total", "trainable"))
        counts = f"{total / 1e6:.2f}M", f"{trained / 1e6:.2f}M"
        dev = " and ".join(sizes[1:])
        rows.append((series.name, f"{start:.24}", *counts, f"{m['data']['name']:.20}", train, dev))
    return rows


def recipe_rows(found: list[Series]) -> Rows:
    """How it was trained."""
    rows = [("run", "its own settings", "batch", "lr", "watched", "epoch kept", "minutes")]
    for series in found:
        given = {k: str(v) for k, v in series.metrics["arguments"].items()}
        kept, done = (
            span([run.metrics["training"][key] for run in series.runs])
            for key in ("best_epoch", "epochs")
        )
        published = PUBLISHED_RECIPES[series.mode]
        plain = {"max_steps": "None", **{name: str(value) for name, value in LATER.items()}}
        names = [n for n in published if n in OF_LORA | OF_DISTIL and n not in plain]
        names += [name for name in plain if given.get(name, plain[name]) != plain[name]]
        own = textwrap.fill(", ".join(f"{name} {given.get(name)}" for name in names) or "–", 50)
        seconds = np.mean([run.metrics["training"]["seconds"] for run in series.runs])
        recipe = (str(given.get(name)) for name in ("batch_size", "lr", "monitor"))
        rows.append((series.name, own, *recipe, f"{kept} of {done}", f"{seconds / 60:.1f}"))
    return rows


def span(values: list[int]) -> str:
    """One number, or the smallest and the largest."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def settings_rows(found: list[Series]) -> Rows:
    """What metrics.json says of the runs, once where it says the same of several."""
    rows = [("part", "of", "what metrics.json says")]
    for part in PARTS:
        told: dict[str, dict[str, list[str]]] = {}  # words -> a series' name -> its sr_no
        for series in found:
            for run in series.runs:
                value = run.metrics.get(part)
                if part == "arguments":  # an option is left out where it had not been born yet
                    names_in = {name for other in series.runs for name in other.metrics[part]}
                    value = {n: value.get(n, LATER.get(n)) for n in sorted(names_in)}
                words = json.dumps(value, ensure_ascii=False).strip('{}"')
                names = told.setdefault(words.replace('"', ""), {})
                names.setdefault(series.name, []).append(str(run.metrics["sr_no"]))
        for words, names in told.items():
            of = "; ".join(f"{name} {', '.join(numbers)}" for name, numbers in names.items())
            which = "all" if len(told) == 1 else textwrap.fill(of, 24)
            rows.append((part, which, textwrap.fill(words, 84)))
    return rows


# ---------------------------------------------------------------------------------------------
# Results


def result_rows(found: list[Series]) -> Rows:
    """Accuracy never without majority baseline and MCC; of several runs mean ± deviation."""
    rows = [("run", "dev set", "corpus", "accuracy", "95% int.", "majority", "MCC", "95% int.")]
    for split, series in product(DEV_SETS, found):
        s = series.scores[split]
        corpus = f"{series.metrics['data']['name']:.20}"
        accuracy = spread(100 * s.accuracies, ".2f", "%"), interval(s.accuracy, ".1f", 100)
        mcc = spread(s.mccs, ".3f"), s.remark.strip(" ()") or interval(s.mcc, ".2f")
        rows.append((series.name, split, corpus, *accuracy, f"{s.majority:.2%}", *mcc))
    return rows


def spread(values: np.ndarray, form: str, unit: str = "") -> str:
    """A value, or the mean and the standard deviation of several."""
    more = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{more}{unit}"


def interval(found: Estimate, form: str, factor: float = 1) -> str:
    """Both ends."""
    return f"{factor * found.low:{form}} to {factor * found.high:{form}}"


def findings(same: list[Series]) -> str:
    """What the results of one variant come to on in_domain_dev, in words."""
    said = []
    for series in same:
        s = series.scores[DEV]
        by = s.accuracy.value - s.majority
        sure = s.accuracy.low > s.majority or s.accuracy.high < s.majority
        where = f"{100 * abs(by):.1f} points {'above' if by > 0 else 'below'} the majority baseline"
        told = "" if sure else ", which lies within its interval"
        figures = f"{s.accuracy.value:.2%} (MCC {s.mcc.value:.3f}{s.remark})"
        said.append(f"{series.name} is right in {figures}, {where}{told}.")
    if len(same[0].runs) > 1:
        for one, two in comparable_pairs(same):
            accuracy, mcc = difference(one.labels(DEV), one.answers(DEV), two.answers(DEV))
            by = f"{100 * accuracy.value:+.1f} points ({interval(accuracy, '+.1f', 100)})"
            more = f"{by} and {mcc.value:+.2f} of MCC ({interval(mcc, '+.2f')})"
            said.append(f"{one.mode} against {two.mode}: {more}.")
    return " ".join(said)


def run_rows(same: list[Series]) -> Rows:
    """Each run's figures."""
    rows = [("run", "sr_no", *DEV_SETS, "epoch kept")]
    for run in (run for series in same for run in series.runs):
        training = run.metrics["training"]
        kept = f"{training['best_epoch']} of {training['epochs']}"
        figures = (summary(run.metrics[split]) for split in DEV_SETS)
        rows.append((run.mode, str(run.metrics["sr_no"]), *figures, kept))
    return rows


def comparable_pairs(same: list[Series]) -> list[tuple[Series, Series]]:
    """LoRA and distil, distil and rnn, of one variant, where they judged the same sentences."""
    corpora = {series.mode: series.metrics["data"]["sha256"] for series in same}
    return [(a, b) for a, b in pairwise(same) if corpora[a.mode] == corpora[b.mode]]


def paired_rows(same: list[Series]) -> Rows:
    """Differences on the same sentences and, of several runs, of the same sr_no."""
    several = len(same[0].runs) > 1
    counts = ("95% int.", "p", "MCC by", "95% int.", "p")
    if not several:
        counts = ("MCC by", "only 1st right", "only 2nd right", "p")
    rows = [("pair", "dev set", "accuracy by", *counts)]
    for (one, two), split in product(comparable_pairs(same), DEV_SETS):
        names = [s.mode + s.scores[split].remark for s in (one, two)]
        if several:
            cells = difference_cells(one.labels(split), one.answers(split), two.answers(split))
        else:
            first, second = one.scores[split], two.scores[split]
            only_first = int((first.right & ~second.right).sum())
            only_second = int((second.right & ~first.right).sum())
            by = first.accuracy.value - second.accuracy.value, first.mcc.value - second.mcc.value
            cells = [f"{100 * by[0]:+.2f}", f"{by[1]:+.3f}", str(only_first), str(only_second)]
            cells.append(f"{mcnemar(only_first, only_second):.2g}")
        rows.append((" against ".join(names), split, *cells))
    return rows


def difference_cells(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[str]:
    """The `difference` of answers (runs, sentences) in accuracy and MCC, with intervals and p."""
    accuracy, mcc = difference(labels, first, second)
    cells = [f"{100 * accuracy.value:+.2f}", interval(accuracy, "+.1f", 100), f"{accuracy.p:.2g}"]
    return [*cells, f"{mcc.value:+.3f}", interval(mcc, "+.2f"), f"{mcc.p:.2g}"]


def agreement_rows(same: list[Series]) -> Rows:
    """How often each student answers as LoRA does, which taught one of them; of several the mean.

    Where another teacher taught, nothing is said.
    """
    rows = [("student", "dev set", "answers as LoRA does", "kappa", "correlation of margins")]
    teacher = same[0]
    names = [run.folder.name for run in teacher.runs]
    for student, split in product(same[1:], DEV_SETS):
        taught_by = [(run.metrics.get("teacher") or {}).get("folder", "") for run in student.runs]
        if (
            teacher.mode == "LoRA"
            and student.metrics["data"]["sha256"] == teacher.metrics["data"]["sha256"]
            and (student.mode == "rnn" or [Path(folder).name for folder in taught_by] == names)
        ):
            pairs = zip(teacher.answers(split), student.answers(split), strict=True)
            shares, kappas = np.array([agreement(*pair) for pair in pairs]).T
            margins = zip(teacher.margins(split), student.margins(split), strict=True)
            r = np.array([np.corrcoef(*pair)[0, 1] for pair in margins])
            cells = spread(100 * shares, ".1f", "%"), spread(kappas, ".3f"), spread(r, ".3f")
            rows.append((student.mode + student.scores[split].remark, split, *cells))
    return rows


def source_rows(same: list[Series]) -> Rows:
    """Accuracy and MCC on each source of the dev sentences, the small sources put together."""
    heads = (f"{series.mode}, MCC" for series in same)
    rows = [("dev set", "source", "sentences", "majority", *heads)]
    try:
        sources = read_sources(same[0].runs[0])
    except UserError as error:
        return [*rows, ("–", textwrap.fill(f"not known: {error}", 90))]
    for split in DEV_SETS:
        sizes = Counter(sources[split].tolist())
        groups = [[name] for name, size in sizes.most_common() if size >= SMALLEST_SOURCE]
        if small := [name for name, size in sizes.items() if size < SMALLEST_SOURCE]:
            groups.append(small)
        for group in groups:
            inside = np.isin(sources[split], group)
            labels = same[0].labels(split)[inside]
            majority = max(labels.mean(), 1 - labels.mean())
            figures = (mean_figures(labels, s.answers(split)[:, inside]) for s in same)
            name = group[0] if len(group) == 1 else f"{len(group)} others"
            rows.append((split, f"{name:.12}", str(inside.sum()), f"{majority:.1%}", *figures))
    return rows


def mean_figures(labels: np.ndarray, answers: np.ndarray) -> str:
    """Accuracy and MCC of answers (runs, sentences), their means."""
    mcc = np.mean([matthews_corrcoef(labels, row) for row in answers])
    return f"{(answers == labels).mean():.1%}, {mcc:.2f}"


def calibration_rows(same: list[Series]) -> Rows:
    """How far a model's confidence in its answers is from their accuracy."""
    rows = [("run", "dev set", "accuracy", "MCC", "mean confidence", "expected calibration error")]
    for series, split in product(same, DEV_SETS):
        labels, p = series.labels(split), series.p_acceptable(split)
        confidence = np.maximum(p, 1 - p).mean(axis=1)
        errors = np.array([calibration_error(labels, row) for row in p])
        s = series.scores[split]
        accuracy, confidence = (spread(100 * x, ".1f", "%") for x in (s.accuracies, confidence))
        figures = accuracy, spread(s.mccs, ".3f"), confidence, spread(errors, ".3f")
        rows.append((series.mode + s.remark, split, *figures))
    return rows


def size_rows(same: list[Series]) -> Rows:
    """Size and speed of one variant's models, with ratios to the first: LoRA, the teacher."""
    rows = [("model", "megabytes (ratio)", "sentences/s (ratio)")]
    measured = measure_inference([series.runs[0] for series in same])
    first = measured[same[0].mode]
    for name, found in measured.items():
        if reason := found.get("reason"):
            rows.append((name, textwrap.fill(f"not measured: {reason}", 90)))
            continue
        size, rate = f"{found['bytes'] / 1e6:.1f}", two_digits(found[RATE])
        if "bytes" in first:
            size += f" ({found['bytes'] / first['bytes']:.3f}×)"
            rate += f" ({two_digits(found[RATE] / first[RATE])}×)"
        rows.append((name, size, rate))
    return rows


def two_digits(value: float) -> str:
    """As a timing on a shared machine deserves."""
    return f"{float(f'{value:.2g}'):,g}"


def differences_from_published(series: Series) -> list[str]:
    """Why runs may not be read against the published ones: their base, corpus or settings."""
    differing, metrics = [], series.metrics
    if metrics["base"]["name"] not in ("gpt2", "gpt2-medium"):
        differing.append(f"base {metrics['base']['name']}")
    if [metrics["data"][split]["sentences"] for split in SPLITS] != [8551, 527, 516]:
        differing.append(f"corpus {metrics['data']['name']}")
    for key, value in PUBLISHED_RECIPES[series.mode].items():
        found = metrics["arguments"].get(key, LATER.get(key, "not known"))
        if found != value:
            differing.append(f"{key} {found}")
    return differing


def comparison_table(found: list[Series]) -> str:
    """The results as aligned plain text."""
    rows = result_rows(found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
