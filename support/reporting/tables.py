"""What does a report tell? Tables, which are data frames of words, and findings in sentences."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame

from support.corpus import COLA_SHA256, DEV, TRAIN
from support.options import published
from support.reporting.finished import DEV_SETS, Experiment, Rows
from support.reporting.metrics import classes_of, majority, matthews_corrcoef, summary
from support.reporting.statistics import (
    Estimate,
    Score,
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
PAIR = ["pair", "dev set", "accuracy by", "95% interval", "p", "MCC by", "95% of MCC", "p of MCC"]


class Section(NamedTuple):
    """A part of a report: tables and pictures (PNG files) have captions."""

    heading: str
    texts: list[str]
    tables: Sequence[tuple[str, DataFrame]] = ()
    pictures: Sequence[tuple[str, list[bytes]]] = ()
    details: Sequence[tuple[str, DataFrame]] = ()  # tables of the page alone


# ---------------------------------------------------------------------------------------------
# Results


def grouped(shown: list[Experiment]) -> list[list[Experiment]]:
    """Return the experiments of each corpus, whose results may stand in one table."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in shown:
        groups.setdefault(experiment.metrics["data"]["sha256"], []).append(experiment)
    return [*groups.values()]


def corpus_facts(experiment: Experiment) -> str:
    """Tell a corpus' name, sizes and classes."""
    data = experiment.metrics["data"]
    train, *dev = (f"{data[split]['sentences']:,}" for split in (TRAIN, *experiment.dev_sets))
    sets = "dev sets" if len(dev) > 1 else "a dev set"
    sizes = f"{train} training sentences, {sets} of {' and '.join(dev)}"
    zero, one = classes_of(experiment.metrics)
    return f"{data['name']}: {sizes}. 1 is “{one}”, 0 “{zero}”."


def result_table(shown: list[Experiment]) -> DataFrame:
    """Tell accuracy, never without majority baseline and MCC; of several runs mean ± deviation."""
    rows = []
    for split, experiment in product(shown[0].dev_sets, shown):
        s = experiment.scores[split]
        accuracy, mcc = score_cells(s)
        rows.append((
            experiment.name, split, accuracy, interval(s.accuracy, ".1f", 100),
            f"{s.majority:.2%}", mcc, interval(s.mcc, ".2f"),
        ))  # fmt: skip
    return DataFrame(rows, columns=RESULT)


def score_cells(s: Score) -> tuple[str, str]:
    """Return accuracy and MCC; behind MCC, whether a model answers one class only."""
    return spread(100 * s.accuracies, ".2f", "%"), spread(s.mccs, ".3f") + s.remark


def spread(values: np.ndarray, form: str, unit: str = "") -> str:
    """Return a value, or the mean and the standard deviation of several."""
    more = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{more}{unit}"


def interval(estimate: Estimate, form: str, factor: float = 1) -> str:
    """Return both ends."""
    return f"{factor * estimate.low:{form}} to {factor * estimate.high:{form}}"


def findings(group: list[Experiment]) -> str:
    """Tell how far the models of one variant are from the majority baseline on in_domain_dev."""
    sentences = []
    for experiment in group:
        s = experiment.scores[DEV]
        by = 100 * (s.accuracy.value - s.majority)
        sure = s.accuracy.low > s.majority or s.accuracy.high < s.majority
        sentences.append(
            f"{experiment.name} is right in {s.accuracy.value:.2%} (MCC {s.mcc.value:.3f}"
            f"{s.remark}), {abs(by):.1f} points {'above' if by > 0 else 'below'} the majority "
            f"baseline{'' if sure else ', which lies within its interval'}."
        )
    return f"On {DEV} {' '.join(sentences)}"


def run_table(group: list[Experiment]) -> DataFrame:
    """Tell each run's scores, and how long it was trained."""
    rows = []
    for run in (run for experiment in group for run in experiment.runs):
        m, training = run.metrics, run.metrics["training"]
        rows.append({
            "run": m["mode"],
            "sr_no": m["sr_no"],
            **{split: summary(m[split]) for split in group[0].dev_sets},
            "epoch kept": f"{training['best_epoch']} of {training['epochs']}",
            "steps": f"{training['steps']:,}",
        })  # fmt: skip
    return DataFrame(rows)


# ---------------------------------------------------------------------------------------------
# Pairs


def pairs_of(group: list[Experiment]) -> Iterator[tuple[Experiment, Experiment]]:
    """Yield LoRA and distil, distil and rnn, of the seeds that both have."""
    for one, two in pairwise(group):
        if common := set(one.sr_nos) & set(two.sr_nos):
            yield one.of_seeds(common), two.of_seeds(common)


def paired_table(group: list[Experiment]) -> DataFrame:
    """Tell differences on the same sentences and seeds; of a single run McNemar's p."""
    rows = []
    for (one, two), split in product(pairs_of(group), group[0].dev_sets):
        pair = " against ".join(e.mode + e.scores[split].remark for e in (one, two))
        cells_of = difference_cells if len(one.runs) > 1 else mcnemar_cells
        cells = cells_of(one.labels(split), one.answers(split), two.answers(split))
        rows.append((pair, split, *cells))
    return DataFrame(rows, columns=PAIR)


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
    alone = "{} against {} right alone".format(*only)
    return [accuracy, alone, p_value(mcnemar(*only)), f"{mcc.item():+.3f}", "–", "–"]


def effort(one: Experiment, two: Experiment) -> str:
    """Tell how long two models were trained, and how often they answer alike."""
    took = []
    for experiment in (one, two):
        options = experiment.metrics["arguments"]
        steps = sorted({run.metrics["training"]["steps"] for run in experiment.runs})
        most = f" to {steps[-1]:,}" if len(steps) > 1 else ""
        took.append(f"{experiment.mode} {steps[0]:,}{most} steps of {options.get('batch_size')}")
    alike = (one.answers(DEV) == two.answers(DEV)).mean()
    seeds = ", ".join(map(str, one.sr_nos))
    trained = f"Training: {', '.join(took)} sentences."
    return f"{trained} Over sr_no {seeds} they answer alike in {alike:.1%} of {DEV}."


# ---------------------------------------------------------------------------------------------
# Of the page alone


def calibration_table(group: list[Experiment]) -> DataFrame:
    """Tell how far the models' confidence in their answers is from their accuracy."""
    rows = []
    for experiment, split in product(group, group[0].dev_sets):
        p = experiment.p_acceptable(split)
        errors = np.array([calibration_error(experiment.labels(split), each) for each in p])
        confidence = spread(100 * np.maximum(p, 1 - p).mean(axis=1), ".1f", "%")
        run = experiment.mode + experiment.scores[split].remark
        rows.append((run, split, confidence, spread(errors, ".3f")))
    return DataFrame(rows, columns=["run", "dev set", "mean confidence", "calibration error"])


def source_table(group: list[Experiment], corpus: Rows) -> DataFrame:
    """Tell accuracy and MCC on each source of the dev sentences, where the corpus has them."""
    rows = []
    for split in group[0].dev_sets:
        sources = pd.Series([row.source for row in corpus.get(split, [])], dtype=str)
        for source, size in sources[sources != ""].value_counts().items():
            inside = (sources == source).to_numpy()
            labels = group[0].labels(split)[inside]
            row = {"source": source, "dev set": split, "sentences": size}
            row["majority"] = f"{majority(size, labels.sum()):.1%}"
            for experiment in group:
                answers = experiment.answers(split)[:, inside]
                mcc = matthews_corrcoef(labels, answers).mean()
                row[f"{experiment.mode}, MCC"] = f"{(answers == labels).mean():.1%}, {mcc:.2f}"
            rows.append(row)
    return DataFrame(rows)


def settings_table(group: list[Experiment]) -> DataFrame:
    """Tell what metrics.json says beside results and times; of several runs all that differ.

    Without times the same runs give the same page, also where some were interrupted.
    """
    columns = {}
    for experiment in group:
        said = pd.json_normalize([run.metrics for run in experiment.runs])
        differing = differences_from_published(experiment)
        said["arguments not as published"] = ", ".join(differing) or "none"
        columns[experiment.mode] = said.agg(lambda each: "; ".join(dict.fromkeys(map(str, each))))
    table = DataFrame(columns).fillna("").rename_axis("setting").reset_index()
    others = (*DEV_SETS, "identity.", "training.seconds")
    return table[~table["setting"].str.startswith(others)]


# ---------------------------------------------------------------------------------------------
# What is comparable


def differences_from_published(experiment: Experiment) -> list[str]:
    """Return why runs may not be read against the published: their base, corpus or settings."""
    differing = []
    for run in experiment.runs:
        base = run.metrics["base"]
        hub = base.get("kind") == "hub"  # a folder of that name can be any
        if not hub or base["name"].removeprefix("openai-community/") not in ("gpt2", "gpt2-medium"):
            folder = " (a folder)" if base.get("kind") == "folder" else ""
            differing.append(f"base {base['name']}{folder}")
        if (precision := run.metrics["identity"].get("precision", "fp32")) != "fp32":
            differing.append(f"precision {precision}")
    if known_corpus(experiment) != "CoLA":
        differing.append(f"corpus {experiment.metrics['data']['name']}")
    usual = published(experiment.mode)
    given = usual | experiment.metrics["arguments"]  # what an older run lacks came later
    differing += [f"{name} {given[name]}" for name in usual if given[name] != usual[name]]
    return [*dict.fromkeys(differing)]


def known_corpus(experiment: Experiment) -> str:
    """Return "CoLA" or "nano" where a corpus is CoLA or nano's own; else nothing.

    CoLA is known by its files, or by its name where a run does not record them; nano's corpus by
    its name, which only the project's own folder has.
    """
    data = experiment.metrics["data"]
    if data["name"] == "nano/corpus":
        return "nano"
    is_cola = data["files"] == COLA_SHA256 if "files" in data else data["name"] == "cola_public"
    return "CoLA" if is_cola else ""


def unseen(group: list[Experiment], corpus: Rows) -> list[str]:
    """Tell the scores without the dev sentences that the training split of the corpus has too.

    The text is the same, character by character; the label may be another.
    """
    known = {row.sentence for row in corpus[TRAIN]}
    lines = {
        split: [line for line, row in enumerate(corpus[split], start=1) if row.sentence in known]
        for split in group[0].dev_sets
    }
    return scores_without(lines, {experiment.name: experiment for experiment in group})


def scores_without(lines: dict[str, list[int]], named: dict[str, Experiment]) -> list[str]:
    """Tell for each dev set the scores without some of its lines, those that training had too."""
    sentences = []
    for split, numbers in lines.items():
        labels = next(iter(named.values())).labels(split)
        kept = np.delete(np.arange(len(labels)), np.array(numbers, int) - 1)
        if not numbers or not len(kept):
            how_many = "Every" if numbers else "No"
            sentences.append(f"{how_many} sentence of {split} stands in the training split too.")
            continue
        found = {n: score(labels[kept], e.answers(split)[:, kept]) for n, e in named.items()}
        cells = [f"{n} {', MCC '.join(score_cells(s))}" for n, s in found.items()]
        sentences.append(
            f"Without the {len(numbers)} of {len(labels)} sentences of {split} that the training "
            f"split has too: {'; '.join(cells)}; majority baseline "
            f"{next(iter(found.values())).majority:.2%}."
        )
    return sentences
