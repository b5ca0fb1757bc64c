"""Plots, the table of results and `Report_<sr_no>.pdf`, all from the finished runs on disk.

95% intervals after Wilson (1927) and Efron (1979, the bootstrap), the paired test after McNemar
(1947), the colours after Okabe and Ito (2008).
"""

import json
import math
import textwrap
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import groupby, pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
from matplotlib import get_data_path, rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics, ttfonts
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Table
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from data_utils import (
    DEV,
    OUT_OF_DOMAIN,
    SPLITS,
    Split,
    UserError,
    read_split,
    tokenize,
    within_budget,
)
from distil import load_checkpoint, onnx_session, save_onnx
from model import DistilRNN
from train_utils import (
    MAX_TOKENS,
    choose_compute,
    matthews_corrcoef,
    predict_logits,
    read_json,
    write_bytes,
)

DEV_SETS = (DEV, OUT_OF_DOMAIN)
EXPORTED = "distil as ONNX"
MODES = {"LoRA": "GPT-2, fine-tuned", "distil": "student, taught", "rnn": "student, untaught"}
PARTS = ("command", "arguments", "parameters", "training", "data", "base", "hardware", "versions")
PUBLISHED = [  # rows as of `result_rows`; "best" is the best by anyone for the same recipe
    ("published LoRA gpt2", DEV, "CoLA", "79.70%", "76.1 to 82.9", "69.26%", "–", ""),
    ("published LoRA gpt2-medium", DEV, "CoLA", "82.92%", "79.5 to 85.9", "69.26%", "–", ""),
    ("best LoRA gpt2-medium", DEV, "CoLA", "84.06%", "", "69.26%", "–", ""),
    ("published distil", DEV, "CoLA", "72.45%", "", "69.26%", "–", ""),
    ("published rnn", DEV, "CoLA", "69.45%", "65.4 to 73.2", "69.26%", "–", ""),
]


class Run(NamedTuple):
    """A finished run: metrics.json, history.csv by epoch, and a `score` for each dev set."""

    folder: Path
    mode: str
    variant: str
    name: str
    metrics: dict
    history: pd.DataFrame
    scores: dict[str, dict]


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, of 95% by default."""
    p, shrink = correct / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of an even split of the sentences that only one of two models got right."""
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def score(predictions: pd.DataFrame) -> dict:
    """What is shown of a model's answers on a dev set, from its rows of predictions.csv."""
    labels = predictions["label"].to_numpy()  # (sentences,) of 0 and 1
    answers = (predictions["logit_1"] > predictions["logit_0"]).to_numpy(int)
    right, mcc, n = labels == answers, matthews_corrcoef(labels, answers), len(labels)
    draws = np.random.default_rng(0).integers(n, size=(1000, n))  # the bootstrap's
    resampled = [matthews_corrcoef(labels[draw], answers[draw]) for draw in draws]
    one_class = " (one class only)" if len(set(answers)) == 1 else ""
    return {
        "right": right,  # (sentences,)
        "accuracy": right.mean(),
        "interval": wilson_interval(int(right.sum()), n),
        "majority": max(labels.mean(), 1 - labels.mean()),
        "mcc": mcc,
        "mcc_interval": np.quantile(resampled, (0.025, 0.975)),
        "one_class": one_class,
        "text": f"{right.mean():.2%}, MCC {mcc:.3f}{one_class}",
    }


def load_run(folder: Path) -> Run:
    """Read a run's folder. Raises UserError naming the file that is missing or broken."""
    try:
        path = folder / "history.csv"
        columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
        history = pd.read_csv(path, index_col="epoch")[columns].astype(float)
        path = folder / "predictions.csv"
        by_split = pd.read_csv(path).groupby("split")
        scores = {split: score(by_split.get_group(split)) for split in DEV_SETS}
        path = folder / "metrics.json"
        metrics = read_json(path)
        if any(metrics[split]["correct"] != scores[split]["right"].sum() for split in DEV_SETS):
            raise ValueError("predictions.csv has other results")
        mode, variant, best = metrics["mode"], metrics["variant"], metrics["training"]["best_epoch"]
        run = Run(folder, mode, variant, f"{mode} {variant:.24}", metrics, history, scores)
        # Called for their errors alone: what is shown later is read once here, where the file that
        # lacks it can be named.
        setup_rows([run]), result_rows([run]), paired_rows([run, run]), is_comparable(run)
        MODES[mode], metrics["sr_no"], Path(metrics["data"]["folder"], metrics["base"]["name"])
        float(history.loc[best, "val_loss"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: broken ({error!r}); run it again with --overwrite") from None
    return run


def find_runs(out_dir: Path, sr_no: int) -> list[Run]:
    """All finished runs of ``sr_no``, by variant, then LoRA, distil, rnn; UserError if none."""
    folder = Path(out_dir, "checkpoints")
    found = [path for mode in MODES for path in folder.glob(f"{mode}_*_{sr_no}/metrics.json")]
    if not found:
        command = f"python run.py --mode all --sr_no {sr_no}"
        raise UserError(f"{folder}: no finished run with sr_no {sr_no}; make them with: {command}")
    return sorted((load_run(path.parent) for path in found), key=lambda run: run.variant)


def measure_inference(runs: list[Run]) -> dict[str, dict]:
    """Size and CPU speed of one variant's models by mode, and of the taught student as ONNX.

    The models take turns on in_domain_dev. Left out are those whose base is gone, and ONNX where
    onnx and onnxruntime are not installed.
    """
    judges: dict[str, Callable] = {}
    measured: dict[str, dict] = {}
    compute, sentences = choose_compute("cpu", None), 0
    for run in runs:
        source = Path(run.metrics["data"]["folder"], "raw", f"{DEV}.tsv")
        with suppress(UserError):
            model, tokenizer, positions = load_checkpoint(run.folder, run.metrics["base"]["name"])
            split = tokenize(tokenizer, *read_split(source), positions, str(source))
            size, sentences = sum(t.nbytes for t in model.state_dict().values()), len(split)
            judges[run.mode] = partial(predict_logits, model, split, compute)
            measured[run.mode] = {"bytes": size, "sentences_per_second": 0.0}
            if run.mode == "distil":
                size, judges[EXPORTED] = exported(model, len(tokenizer), split)
                measured[EXPORTED] = {"bytes": size, "sentences_per_second": 0.0}
    for _ in tqdm(range(4), desc="timing the models", disable=None, leave=False):
        for name, judge in judges.items():
            began, best = time.perf_counter(), measured[name]["sentences_per_second"]
            judge()
            rate = sentences / (time.perf_counter() - began)
            measured[name]["sentences_per_second"] = max(rate, best)  # the first only warms up
    return measured


def exported(model: DistilRNN, vocabulary_size: int, split: Split) -> tuple[int, Callable]:
    """The size of a student as ONNX, and a function that judges a split with it.

    Raises:
        UserError: where onnx or onnxruntime is not installed.
    """
    with TemporaryDirectory() as folder:
        save_onnx(model, vocabulary_size, path := Path(folder, "student.onnx"))
        size, session = path.stat().st_size, onnx_session(path)
    ends = split.cu_seqlens.tolist()
    batches = []
    for indices in within_budget(split, np.argsort(-split.seqlens, kind="stable"), MAX_TOKENS):
        rows = [split.input_ids[ends[i] : ends[i + 1]] for i in indices]
        lengths = split.seqlens[indices].astype(np.int32)
        batches.append({"input_ids": pad_sequence(rows, True).numpy(), "lengths": lengths})
    return size, lambda: [session.run(None, batch) for batch in batches]


# ---------------------------------------------------------------------------------------------
# Pictures

rcParams.update({"font.family": "STIXGeneral", "text.parse_math": False, "axes.titlesize": 10})
rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def plot_run(run: Run, plots_dir: Path) -> None:
    """Write the loss and the accuracy of one run per epoch, train and validation."""
    best, dev = run.metrics["training"]["best_epoch"], run.scores[DEV]
    for quantity in ("loss", "accuracy"):
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axes = figure.subplots()
        train, val = run.history[f"train_{quantity}"], run.history[f"val_{quantity}"]
        axes.plot(train, "s--", color="#E69F00", markerfacecolor="white", label="train")
        axes.plot(val, "o-", color="#0072B2", markersize=4, label=DEV)
        axes.plot(best, val[best], "k*", markersize=9, label="epoch kept")
        if quantity == "accuracy":
            axes.axhline(dev["majority"], color="0.35", linestyle=":", label="majority baseline")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=quantity, title=f"{run.name}: {dev['text']}")
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1, fontsize=9)
        figure.savefig(png := BytesIO(), dpi=250)
        write_bytes(plots_dir / f"{run.folder.name}_{quantity}.png", png.getvalue())


def plot_comparison(runs: list[Run], plots_dir: Path) -> Path:
    """Draw the runs of one variant: accuracy, its interval and MCC on both dev sets."""
    figure = Figure(figsize=(6.5, 1 + 0.6 * len(runs)), layout="constrained")
    axes = figure.subplots()
    at_right = axes.get_yaxis_transform()
    # Marker, line, colour, inside of the marker, and place within the row, of each dev set.
    looks = (("o", "-", "#0072B2", "#0072B2", -0.18), ("D", "--", "#D55E00", "white", 0.18))
    for split, (marker, line, colour, inside, shift) in zip(DEV_SETS, looks, strict=True):
        axes.plot([], [], marker + line, color=colour, markerfacecolor=inside, label=split)
        for row, shown in enumerate(run.scores[split] for run in runs):
            axes.hlines(row + shift, *shown["interval"], colour, line)
            axes.plot(shown["accuracy"], row + shift, marker, color=colour, markerfacecolor=inside)
            axes.text(1.02, row + shift, shown["text"], transform=at_right, va="center")
    baselines = {runs[0].scores[split]["majority"]: split for split in DEV_SETS}
    for (level, split), line in zip(baselines.items(), (":", "-."), strict=False):
        of = f" of {split}" if len(baselines) > 1 else ""  # one line where both are equal
        label = f"majority baseline{of}, {level:.2%}"
        axes.axvline(level, color="0.35", linestyle=line, zorder=0, label=label)
    axes.set_yticks(range(len(runs)), [f"{run.mode}\n{MODES[run.mode]}" for run in runs])
    axes.set(xlabel="accuracy with its 95% interval", ylim=(len(runs) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside upper center", ncols=2)
    path = plots_dir / f"comparison_{runs[0].variant}_{runs[0].metrics['sr_no']}.png"
    figure.savefig(png := BytesIO(), dpi=250)
    write_bytes(path, png.getvalue())
    return path


# ---------------------------------------------------------------------------------------------
# The report: tables are rows of strings, the headings first


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
    for mode in dict.fromkeys([*(run.mode for run in runs), *measured]):
        cells = []
        for key, unit in (("bytes", 1e6), ("sentences_per_second", 1)):
            value, first = (measured.get(name, {}).get(key) for name in (mode, runs[0].mode))
            ratio = f" ({value / first:.2f}×)" if value and first else ""
            cells.append(f"{value / unit:,.1f}{ratio}" if value else "not measured")
        rows.append((mode, *cells))
    return rows


def is_comparable(run: Run) -> bool:
    """Whether a run may be read against the published ones: weights by name, CoLA, all steps."""
    is_cola = [run.metrics["data"][split]["sentences"] for split in SPLITS] == [8551, 527, 516]
    by_name = run.metrics["base"]["name"] in ("gpt2", "gpt2-medium")
    return is_cola and by_name and run.metrics["arguments"]["max_steps"] is None


def comparison_table(runs: list[Run]) -> str:
    """The results as aligned plain text."""
    headings, *rows = result_rows(runs)
    return pd.DataFrame(rows, columns=headings).set_index("run").rename_axis(None).to_string()


BODY = ParagraphStyle("body", fontName="STIX", fontSize=10, leading=12.5, spaceAfter=5)
CAPTION = ParagraphStyle("caption", BODY, fontSize=9, leading=11, keepWithNext=1)
HEADING = ParagraphStyle("heading", BODY, fontName="STIX-Bold", fontSize=12, keepWithNext=1)
TITLE = ParagraphStyle("title", BODY, fontSize=18, leading=28)
ABSTRACT = """GPT-2 is fine-tuned with LoRA to judge whether a sentence is acceptable English.
DistilRNN, a one-layer recurrent network, is trained with that model as its teacher (distil) and
without (rnn). Beside accuracy stand the majority baseline (the more frequent label for every
sentence) and CoLA's official metric, the Matthews correlation (MCC; 0 for that baseline)."""
COMPARABLE = """To be read against the published rows, a run must start from the weights gpt2 or
gpt2-medium, on CoLA's 8,551, 527 and 516 sentences, without --max_steps. Comparable here: """
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
    comparable = ", ".join(run.name for run in runs if is_comparable(run))
    yield Paragraph(COMPARABLE + escape(comparable or "none") + ".", BODY)
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
        plot_run(run, plots)
    for name, file in (("STIX", "STIXGeneral.ttf"), ("STIX-Bold", "STIXGeneralBol.ttf")):
        pdfmetrics.registerFont(ttfonts.TTFont(name, Path(get_data_path(), "fonts/ttf", file)))
    pdfmetrics.registerFontFamily("STIX", bold="STIX-Bold")
    path = Path(args.out_dir, f"Report_{args.sr_no}.pdf")
    margins = dict.fromkeys(("leftMargin", "rightMargin", "topMargin", "bottomMargin"), 54)
    document = SimpleDocTemplate(pdf := BytesIO(), pagesize=A4, title=path.stem, **margins)
    document.build(list(story(runs, plots)))
    write_bytes(path, pdf.getvalue())
    print(f"{comparison_table(runs)}\n\nreport: {path}\nplots:  {plots}")
