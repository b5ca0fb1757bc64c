"""The tables and `Report_<sr_no>.pdf`, all from the finished runs on disk."""

import json
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby, pairwise, product
from pathlib import Path
from xml.sax.saxutils import escape

from matplotlib import get_data_path
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics, ttfonts
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Table

from data_utils import DEV, SPLITS
from support.files import write_bytes
from support.finished_runs import DEV_SETS, Run, find_runs
from support.inference_speed import measure_inference
from support.plots import plot_comparison, plot_run
from support.statistics import mcnemar, wilson_interval

PARTS = ("command", "arguments", "parameters", "training", "data", "base", "hardware", "versions")
PUBLISHED = [  # rows as of `result_rows`; "best" is the best by anyone for the same recipe
    ("published LoRA gpt2", DEV, "CoLA", "79.70%", "76.1 to 82.9", "69.26%", "–", ""),
    ("published LoRA gpt2-medium", DEV, "CoLA", "82.92%", "79.5 to 85.9", "69.26%", "–", ""),
    ("best LoRA gpt2-medium", DEV, "CoLA", "84.06%", "", "69.26%", "–", ""),
    ("published distil", DEV, "CoLA", "72.45%", "", "69.26%", "–", ""),
    ("published rnn", DEV, "CoLA", "69.45%", "65.4 to 73.2", "69.26%", "–", ""),
]


RECIPE = {"batch_size": 128, "lr": 1e-3, "monitor": "accuracy", "max_steps": None}
PUBLISHED_RECIPES = {
    "LoRA": {**RECIPE, "epochs": 10, "lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0},
    "distil": {**RECIPE, "epochs": 5, "kd_temperature": 2, "kd_alpha": 0.5, "transfer_size": 0},
    "rnn": {**RECIPE, "epochs": 5},
}


# ---------------------------------------------------------------------------------------------
# Tables are rows of strings, the headings first


def setup_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """What metrics.json says of the runs, once where it says the same of all."""
    rows = [("part of metrics.json", "")]
    for part in PARTS:
        texts = [json.dumps(run.metrics[part], ensure_ascii=False)[1:-1] for run in runs]
        if len(set(texts)) > 1:
            texts = [f"{run.name}: {text}" for run, text in zip(runs, texts, strict=True)]
        lines = (textwrap.fill(text.replace('"', ""), 92) for text in dict.fromkeys(texts))
        rows.append((part, "\n".join(lines)))
    return rows


def result_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """Accuracy never without majority baseline and MCC."""
    rows = [("run", "dev set", "corpus", "accuracy", "95% int.", "majority", "MCC", "95% int.")]
    for split, run in product(DEV_SETS, runs):
        s, corpus = run.scores[split], f"{run.metrics['data']['name']:.20}"
        (low, high), ends = s["interval"], "{:.2f} to {:.2f}".format(*s["mcc_interval"])
        accuracy = f"{s['accuracy']:.2%}", f"{100 * low:.1f} to {100 * high:.1f}"
        mcc = f"{s['mcc']:.3f}", s["one_class"].strip(" ()") or ends
        rows.append((run.name, split, corpus, *accuracy, f"{s['majority']:.2%}", *mcc))
    return rows


def paired_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """LoRA against distil and distil against rnn, of one variant and on the same sentences."""
    rows = [("pair", "dev set", "accuracy by", "MCC by", "only 1st right", "only 2nd right", "p")]
    for (one, two), split in product(pairwise(runs), DEV_SETS):
        if one.metrics["data"]["sha256"] == two.metrics["data"]["sha256"]:
            first, second = one.scores[split], two.scores[split]
            only_first = int((first["right"] & ~second["right"]).sum())
            only_second = int((second["right"] & ~first["right"]).sum())
            accuracy, mcc = (first[key] - second[key] for key in ("accuracy", "mcc"))
            numbers = f"{100 * accuracy:+.2f}", f"{mcc:+.3f}", str(only_first), str(only_second)
            p = f"{mcnemar(only_first, only_second):.2g}"
            pair = f"{one.mode}{first['one_class']} against {two.mode}{second['one_class']}"
            rows.append((pair, split, *numbers, p))
    return rows


def size_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """Size and speed of one variant's models, with ratios to the first: LoRA, the teacher."""
    rows = [("model", "megabytes (ratio)", "sentences/s (ratio)")]
    measured = measure_inference(runs)
    first = measured[runs[0].mode]
    for name, found in measured.items():
        if reason := found.get("reason"):
            rows.append((name, textwrap.fill(f"not measured: {reason}", 90), ""))
            continue
        cells = []
        for key, unit in (("bytes", 1e6), ("sentences_per_second", 1)):
            ratio = f" ({found[key] / first[key]:.2f}×)" if key in first else ""
            cells.append(f"{found[key] / unit:,.1f}{ratio}")
        rows.append((name, *cells))
    return rows


def differences_from_published(run: Run) -> list[str]:
    """Why a run may not be read against the published ones: its base, corpus or settings."""
    differing, metrics = [], run.metrics
    if metrics["base"]["name"] not in ("gpt2", "gpt2-medium"):
        differing.append(f"base {metrics['base']['name']}")
    if [metrics["data"][split]["sentences"] for split in SPLITS] != [8551, 527, 516]:
        differing.append(f"corpus {metrics['data']['name']}")
    for key, value in PUBLISHED_RECIPES[run.mode].items():
        found = metrics["arguments"].get(key, "not known")
        if found != value:
            differing.append(f"{key} {found}")
    return differing


def comparison_table(runs: list[Run]) -> str:
    """The results as aligned plain text."""
    rows = result_rows(runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


BODY = ParagraphStyle("body", fontName="STIX", fontSize=10, leading=12.5, spaceAfter=5)
CAPTION = ParagraphStyle("caption", BODY, fontSize=9, leading=11, keepWithNext=1)
HEADING = ParagraphStyle("heading", BODY, fontName="STIX-Bold", fontSize=12, keepWithNext=1)
TITLE = ParagraphStyle("title", BODY, fontSize=18, leading=28)
ABSTRACT = """A pretrained decoder is fine-tuned with LoRA to judge whether a sentence is acceptable
English. DistilRNN, a one-layer recurrent network, is trained with that model as its teacher
(distil) and without (rnn). Beside accuracy stand the majority baseline (the more frequent label for
every sentence) and CoLA's official metric, the Matthews correlation (MCC; 0 for that baseline)."""
COMPARABLE = """To be read against the published rows, a run must start from the weights gpt2 or
gpt2-medium, on CoLA's 8,551, 527 and 516 sentences, with the published settings. """
LIMITS = """Intervals and p cover the choice of dev sentences, not that of initial weights and batch
order: another seed can move a result as much. The p are not corrected for their number. The epoch
was selected on in_domain_dev, which flatters the results there; out_of_domain_dev was looked at
once, at the end. The published results are single figures without MCC: no paired test with them is
possible. nano is a demonstration: what it shows of its own grammar is not English."""


def numbered(kind: str, caption: str, rows: list, left: int = 1) -> list[Flowable]:
    """A numbered table with horizontal rules only, ``left`` columns flush left, or a figure."""
    everything = (0, 0), (-1, -1)
    rules = [
        ("LINEABOVE", (0, 0), (-1, 0), 0.9, "black"), ("LINEBELOW", (0, 0), (-1, 0), 0.4, "black"),
        ("LINEBELOW", (0, -1), (-1, -1), 0.9, "black"), ("FONT", *everything, "STIX", 8.5, 10),
        ("VALIGN", *everything, "TOP"), ("ALIGN", (left, 0), (-1, -1), "RIGHT"),
        ("TOPPADDING", *everything, 1), ("BOTTOMPADDING", *everything, 2),
    ]  # fmt: skip
    body = Table(rows, style=rules if kind == "Table" else None, spaceAfter=9)
    return [Paragraph(f"<b>{kind} <seq id='{kind}'/>.</b> {escape(caption)}", CAPTION), body]


def story(runs: list[Run], plots: Path) -> Iterator[Flowable]:
    """The report's parts in order."""
    yield Paragraph(f"LoRA and a distilled student, sr_no {runs[0].metrics['sr_no']}", TITLE)
    yield Paragraph(ABSTRACT, BODY)
    yield Paragraph("What was run", HEADING)
    yield from numbered("Table", "What metrics.json says of the runs.", setup_rows(runs), left=2)
    yield Paragraph("Results", HEADING)
    yield from numbered("Table", "Ours, then the published.", result_rows(runs) + PUBLISHED, left=3)
    apart = {run.name: differences_from_published(run) for run in runs}
    comparable = ", ".join(name for name, differing in apart.items() if not differing) or "none"
    others = [f"{name} ({', '.join(differing)})" for name, differing in apart.items() if differing]
    text = f"Comparable here: {comparable}. Not comparable: {'; '.join(others) or 'none'}."
    yield Paragraph(COMPARABLE + escape(text), BODY)
    for variant, group in groupby(runs, lambda run: run.variant):
        picture = Image(plot_comparison(same := list(group), plots), 450, 400, kind="proportional")
        yield from numbered("Figure", f"{variant}: the models kept.", [[picture]])
        if len(pairs := paired_rows(same)) > 1:
            yield from numbered("Table", f"{variant}: pairs, with McNemar's p.", pairs, left=2)
        yield from numbered("Table", f"{variant}: size and speed on the CPU.", size_rows(same))
        for run in same:
            paths = [plots / f"{run.folder.name}_{part}.png" for part in ("loss", "accuracy")]
            pictures = [Image(path, 225, 400, kind="proportional") for path in paths]
            yield from numbered("Figure", f"{run.name}, epoch by epoch.", [pictures])
    yield Paragraph("What these numbers cannot say", HEADING)
    n = runs[0].metrics["data"][DEV]["sentences"]
    low, high = (100 * end for end in wilson_interval(round(0.8 * n), n))
    width = f"On {n} sentences an accuracy of 80% means anything from {low:.1f}% to {high:.1f}%. "
    yield Paragraph(width + LIMITS, BODY)


def run_report(args: Namespace) -> None:
    """Write plots and PDF, and print the table, of the runs of ``args.sr_no``."""
    runs, plots = find_runs(args.out_dir, args.sr_no), Path(args.out_dir, "plots")
    for run in runs:
        plot_run(run.folder, plots)
    for name, file in (("STIX", "STIXGeneral.ttf"), ("STIX-Bold", "STIXGeneralBol.ttf")):
        pdfmetrics.registerFont(ttfonts.TTFont(name, Path(get_data_path(), "fonts/ttf", file)))
    pdfmetrics.registerFontFamily("STIX", bold="STIX-Bold")
    path = Path(args.out_dir, f"Report_{args.sr_no}.pdf")
    margins = dict.fromkeys(("leftMargin", "rightMargin", "topMargin", "bottomMargin"), 54)
    document = SimpleDocTemplate(pdf := BytesIO(), pagesize=A4, title=path.stem, **margins)
    document.build(list(story(runs, plots)))
    write_bytes(path, pdf.getvalue())
    print(f"{comparison_table(runs)}\n\nreport: {path}\nplots:  {plots}")
