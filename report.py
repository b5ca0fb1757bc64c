"""Plots, the comparison table and `Report_<sr_no>.pdf`, all from the finished runs on disk.

In five parts: the runs, the statistics, the pictures, what the report says (a list of headings,
paragraphs, tables and figures), and how that list is typeset.

Sources: Wilson (1927) for the interval of an accuracy, McNemar (1947) for two models on the same
sentences, Efron (1979) for the bootstrap, Okabe and Ito (2008) for the colours.
"""

import json
import math
import textwrap
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import Image, KeepTogether, Paragraph, SimpleDocTemplate, Table

from data_utils import UserError
from train_utils import read_json, write_bytes

MODES = {"LoRA": "GPT-2, fine-tuned", "distil": "DistilRNN, taught", "rnn": "DistilRNN, untaught"}
SPLITS = {  # marker, colour, inside of the marker, line of the baseline, height within the row
    "in_domain_dev": ("o", "#0072B2", "#0072B2", ":", -0.14),
    "out_of_domain_dev": ("D", "#D55E00", "white", "-.", 0.29),
}
# A table's columns: heading, then left or right, then width (in characters, where printed).
RESULTS = (
    "mode l9, variant l20, params r9, epoch r7, acc. % r8, correct r10, 95% int. r14, MCC r8, "
    "95% int. r15"
)
PUBLISHED = [
    "published, in_domain_dev of CoLA, 527 sentences, 365 acceptable; MCC not published",
    ("LoRA", "gpt2", "125.03M", "", "79.70", "420/527", "76.1 to 82.9", "–", ""),
    ("LoRA", "gpt2-medium", "356.40M", "", "82.92", "437/527", "79.5 to 85.9", "–", ""),
    ("LoRA", "gpt2-medium, best found", "", "", "84.06", "–", "", "–", ""),
    ("distil", "DistilRNN with KD", "", "", "72.45", "–", "", "–", ""),
    ("rnn", "DistilRNN without KD", "", "", "69.45", "366/527", "65.4 to 73.2", "–", ""),
    ("majority", "baseline", "", "", "69.26", "365/527", "", "0.000", ""),
]
PICTURE_STYLE = {
    "font.family": "STIXGeneral", "font.size": 10, "text.parse_math": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.titlesize": 9.5, "legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "lines.linewidth": 1.3, "lines.markersize": 4,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# The runs


class Run(NamedTuple):
    """A finished run: its folder, metrics.json, and history.csv (one row an epoch)."""

    folder: Path
    metrics: dict
    history: pd.DataFrame

    @property
    def mode(self) -> str:
        return self.metrics["mode"]

    @property
    def variant(self) -> str:
        return self.metrics["variant"]

    @property
    def name(self) -> str:
        return f"{self.mode} {shorten(self.variant)}"


@contextmanager
def naming(path: Path) -> Iterator[Path]:
    """Turn what goes wrong while ``path`` is read into one line that names it and the remedy."""
    try:
        yield path
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path}: broken ({what}); run it again with --overwrite") from None


def load_run(folder: Path) -> Run:
    """Read one run's folder. Raises UserError naming the file that is missing or broken."""
    with naming(folder / "metrics.json") as path:
        metrics = read_json(path)
        best_epoch, _ = metrics["training"]["best_epoch"], MODES[metrics["mode"]]
        [metrics[key] for key in ("variant", "sr_no", "command", "hardware", "versions", "teacher")]
        [metrics["parameters"][part] / 1 for part in ("total", "trainable")]
        [metrics["data"][part]["tokens"] / 1 for part in ("in_domain_train", *SPLITS)]
        for score in (metrics[split] for split in SPLITS):
            [score[k] + 0 for k in ("acceptable", "predicted_acceptable", "accuracy", "mcc")]
            wilson_interval(score["correct"], score["sentences"])
    with naming(folder / "history.csv") as path:
        history = pd.read_csv(path)
        history[["train_loss", "train_accuracy", "val_loss", "val_accuracy"]].astype(float)
        history.set_index("epoch").loc[best_epoch]
    return Run(folder, metrics, history)


def find_runs(out_dir: Path, sr_no: int) -> list[Run]:
    """All finished runs of ``sr_no``, by variant, then LoRA, distil, rnn; UserError if none."""
    found = sorted(Path(out_dir, "checkpoints").glob(f"*_{sr_no}/metrics.json"))
    runs = [load_run(path.parent) for path in found if path.parent.name.split("_")[0] in MODES]
    if not runs:
        missing = f"{Path(out_dir, 'checkpoints')}: no finished run with sr_no {sr_no}"
        raise UserError(f"{missing}; make them with: python run.py --mode all --sr_no {sr_no}")
    return sorted(runs, key=lambda run: (run.variant, list(MODES).index(run.mode)))


def read_predictions(run: Run, split: str) -> pd.DataFrame:
    """Columns line, label and predicted (0 or 1), one row for each sentence of ``split``."""
    with naming(run.folder / "predictions.csv") as path:
        table = pd.read_csv(path)
        table = table[table["split"] == split].reset_index(drop=True)
        table["predicted"] = (table["logit_1"] > table["logit_0"]).astype(int)
        if (table["predicted"] == table["label"]).sum() != run.metrics[split]["correct"]:
            raise ValueError(f"its {split} disagrees with metrics.json")
        return table[["line", "label", "predicted"]]


def measure_inference(run: Run) -> dict | None:
    """Size and speed of a saved model: {"bytes": int, "sentences_per_second": float}, or None."""
    return None


def grouped(runs: list[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def by_variant(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    return list(grouped(runs, lambda run: run.variant).items())


# ---------------------------------------------------------------------------------------------
# Statistics


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1]; the default z gives 95%."""
    p, shrink = correct / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Compare two boolean arrays (sentences,), "is correct".

    Returns how many only the first got right, how many only the second, and the exact two-sided p
    of an even split between the two.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**n)


def mcc_interval(
    label: np.ndarray, predicted: np.ndarray, seed: int, resamples: int = 2000
) -> tuple[float, float]:
    """95% percentile bootstrap of the Matthews correlation; arrays (sentences,) of 0 and 1.

    Drawing sentences with replacement is drawing the four cells of the confusion matrix from a
    multinomial, so one call draws all resamples. An undefined correlation counts as 0.
    """
    cells = np.bincount(2 * label + predicted, minlength=4)
    draws = np.random.default_rng(seed).multinomial(len(label), cells / len(label), resamples)
    tn, fp, fn, tp = draws.T.astype(float)  # each (resamples,)
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc = np.divide(tp * tn - fp * fn, root, out=np.zeros(resamples), where=root > 0)
    return tuple(np.quantile(mcc, (0.025, 0.975)).tolist())


def scores(run: Run, split: str) -> tuple:
    """Accuracy and its interval (both in percent), MCC and its interval."""
    score, table = run.metrics[split], read_predictions(run, split)
    wilson = [100 * end for end in wilson_interval(score["correct"], score["sentences"])]
    seed = run.metrics["sr_no"]
    mcc_ends = mcc_interval(table["label"].to_numpy(), table["predicted"].to_numpy(), seed)
    return 100 * score["correct"] / score["sentences"], wilson, score["mcc"], mcc_ends


def majority(score: dict) -> float:
    """Accuracy, in percent, of giving every sentence the more frequent label."""
    share = score["acceptable"] / score["sentences"]
    return 100 * max(share, 1 - share)


def one_class(score: dict) -> str | None:
    """The only answer a model gives, or None where it gives both."""
    return {0: "unacceptable", score["sentences"]: "acceptable"}.get(score["predicted_acceptable"])


# ---------------------------------------------------------------------------------------------
# Pictures


def save(path: Path, content: bytes) -> Path:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); choose another --out_dir") from None
    return path


def png(figure: Figure, dpi: int = 200) -> bytes:
    figure.savefig(buffer := BytesIO(), format="png", dpi=dpi)
    return buffer.getvalue()


def draw_curves(axes, run: Run, quantity: str) -> None:
    """Train and validation "loss" or "accuracy" per epoch, with the epoch that was kept."""
    epochs, best = run.history["epoch"], run.metrics["training"]["best_epoch"]
    unit, score = (100 if quantity == "accuracy" else 1), run.metrics["in_domain_dev"]
    train, val = (unit * run.history[f"{part}_{quantity}"] for part in ("train", "val"))
    axes.axvline(best, color="0.8", linewidth=0.8, zorder=0)
    axes.plot(epochs, train, "s--", color="#E69F00", markerfacecolor="white", label="train")
    axes.plot(epochs, val, "o-", color="#0072B2", label="validation (in_domain_dev)")
    axes.plot(best, val[epochs == best], "k*", markersize=9, label="best epoch, kept")
    axes.set(xlabel="epoch", ylabel="loss", title=run.mode)
    if quantity == "accuracy":
        base, at_right = majority(score), axes.get_yaxis_transform()
        axes.axhline(base, color="0.35", linestyle=":", zorder=0, label="majority baseline")
        axes.text(1.01, base, f"{base:.2f}", transform=at_right, color="0.35", size=8, va="center")
        title = f"epoch {best}: {100 * score['accuracy']:.2f}%, MCC {score['mcc']:.3f}"
        axes.set(ylabel="accuracy, %", title=title)
    axes.set_xlim(epochs.min() - 0.4, epochs.max() + 0.4)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def draw_variant(runs: list[Run]) -> Figure:
    """Small multiples: a column for each run of one variant, loss over accuracy."""
    figure = Figure(figsize=(6.5, 3.3), layout="constrained")
    grid = figure.subplots(2, len(runs), sharey="row", squeeze=False)
    for (loss, accuracy), run in zip(grid.T, runs, strict=True):
        draw_curves(loss, run, "loss")
        draw_curves(accuracy, run, "accuracy")
    for axes in grid.flat:
        axes.label_outer()
    figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_comparison(runs: list[Run]) -> Figure:
    """The runs of one variant, one a row: accuracy and MCC on both dev sets, 95% intervals."""
    figure = Figure(figsize=(6.5, 1.0 + 0.58 * len(runs)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for split, (marker, colour, inside, line, height) in SPLITS.items():
        look = {"color": colour, "markerfacecolor": inside, "markersize": 5}
        for y, run in enumerate(runs):
            at, base = y + height, majority(run.metrics[split])
            accuracy, wilson, mcc, mcc_ends = scores(run, split)
            for axes, value, ends, text in (
                (left, accuracy, wilson, f"{accuracy:.1f}"),
                (right, mcc, mcc_ends, f"{mcc:.2f}"),
            ):
                axes.axhline(y - 0.5, color="0.85", linewidth=0.6)
                axes.plot(ends, (at, at), color=colour, linewidth=1.8)
                axes.plot(value, at, marker, **look)
                axes.annotate(text, (value, at), (0, 4.5), textcoords="offset points", size=9,
                              ha="center", path_effects=halo)  # fmt: skip
            left.vlines(base, y - 0.5, y + 0.5, color=colour, linestyle=line, zorder=1)
        score = runs[0].metrics[split]
        left.plot([], [], marker, **look, label=f"{split}, {score['sentences']:,} sentences")
        base = f"its majority baseline, {majority(score):.2f}%"
        left.plot([], [], line, color=colour, label=base)
    right.axvline(0, color="0.35", linestyle=":", zorder=0)
    flags = ["\none class only" * any(one_class(r.metrics[s]) for s in SPLITS) for r in runs]
    names = [f"{r.mode}\n{MODES[r.mode]}{flag}" for r, flag in zip(runs, flags, strict=True)]
    left.set_yticks(range(len(runs)), names)
    left.set(xlabel="accuracy, %", ylim=(len(runs) - 0.5, -0.5))
    right.set(xlabel="MCC (0: no better than chance)")
    for axes in (left, right):
        axes.margins(x=0.1)
        axes.tick_params(axis="y", length=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@matplotlib.rc_context(PICTURE_STYLE)
def plot_run(folder: Path, plots_dir: Path) -> list[Path]:
    """Write the loss and the accuracy curves of one run; returns the two paths."""
    run, paths = load_run(folder), []
    for quantity in ("loss", "accuracy"):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        draw_curves(axes, run, quantity)
        figure.suptitle(run.name, fontsize=11)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        paths.append(save(plots_dir / f"{folder.name}_{quantity}.png", png(figure)))
    return paths


@matplotlib.rc_context(PICTURE_STYLE)
def plot_comparison(runs: list[Run], plots_dir: Path) -> list[Path]:
    """Write one picture for each variant, its runs one below the other; returns the paths."""
    return [
        save(
            plots_dir / f"comparison_{variant}_{same[0].metrics['sr_no']}.png",
            png(draw_comparison(same)),
        )
        for variant, same in by_variant(runs)
    ]


# ---------------------------------------------------------------------------------------------
# What the report says


def shorten(name: str, length: int = 20) -> str:
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def millions(run: Run, part: str = "total") -> str:
    return f"{run.metrics['parameters'][part] / 1e6:.2f}M"


def columns(spec: str) -> list[tuple[str, str, int]]:
    """Heading, "l" or "r", and width of each column of a table."""
    split = (column.rsplit(" ", 1) for column in spec.split(", "))
    return [(heading, kind[0], int(kind[1:])) for heading, kind in split]


def corpus_of(run: Run) -> str:
    """The same for the same sentences, whatever tokenizer read them."""
    data = run.metrics["data"]
    sizes = [(data[s]["sentences"], data[s]["acceptable"]) for s in ("in_domain_train", *SPLITS)]
    return f"{data['name']} {sizes}"


def result_rows(runs: list[Run]) -> list:
    """Rows of cells for RESULTS; a row that is a string is a heading for what follows."""
    rows = []
    for split in SPLITS:
        for same in grouped(runs, corpus_of).values():
            corpus, first = shorten(same[0].metrics["data"]["name"], 40), same[0].metrics[split]
            total, yes = first["sentences"], first["acceptable"]
            rows.append(f"{split} of {corpus}, {total:,} sentences, {yes:,} acceptable")
            for run in same:
                accuracy, (low, high), mcc, (mcc_low, mcc_high) = scores(run, split)
                correct, epoch = (
                    run.metrics[split]["correct"],
                    run.metrics["training"]["best_epoch"],
                )
                mcc_ends = f"{mcc_low:.2f} to {mcc_high:.2f}"
                rows.append((
                    run.mode, run.variant, millions(run), str(epoch), f"{accuracy:.2f}",
                    f"{correct}/{total}", f"{low:.1f} to {high:.1f}", f"{mcc:.3f}",
                    "one class" if one_class(run.metrics[split]) else mcc_ends,
                ))  # fmt: skip
            base = (f"{majority(first):.2f}", f"{max(yes, total - yes)}/{total}", "", "0.000", "")
            rows.append(("majority", "baseline", "", "", *base))
    return rows


def paired_rows(runs: list[Run]) -> list[tuple]:
    """Neighbouring runs of one variant on the same sentences: differences and McNemar's test."""
    rows = []
    for first, second in pairwise(runs):
        for split in SPLITS if first.variant == second.variant else ():
            one, two = read_predictions(first, split), read_predictions(second, split)
            if not one[["line", "label"]].equals(two[["line", "label"]]):
                continue
            right = [(table["predicted"] == table["label"]).to_numpy() for table in (one, two)]
            only_first, only_second, p = mcnemar_exact(*right)
            mcc = first.metrics[split]["mcc"] - second.metrics[split]["mcc"]
            rows.append((
                f"{first.mode} against {second.mode}", first.variant, split,
                f"{100 * (only_first - only_second) / len(one):+.2f}", f"{mcc:+.3f}",
                str(only_first), str(only_second), f"{p:.3f}" if p >= 0.0005 else "<0.001",
            ))  # fmt: skip
    return rows


def size_rows(runs: list[Run]) -> list[tuple]:
    """Parameters, megabytes and speed, with ratios to the first run of the variant: LoRA's."""
    rows = []
    for variant, same in by_variant(runs):
        measured = [measure_inference(run) or {} for run in same]
        for run, facts in zip(same, measured, strict=True):
            size, speed = facts.get("bytes"), facts.get("sentences_per_second")
            first, first_speed = same[0], measured[0].get("sentences_per_second")
            share = run.metrics["parameters"]["total"] / first.metrics["parameters"]["total"]
            rows.append((
                run.mode, variant, millions(run), f"{share:.2f}×",
                f"{size / 1e6:,.1f}" if size else "not measured",
                f"{speed:,.0f}" if speed else "not measured",
                f"{speed / first_speed:.2f}×" if speed and first_speed else "",
            ))  # fmt: skip
    return rows


def remarks(runs: list[Run]) -> list[str]:
    """What must be said wherever these runs are shown."""
    said = []
    for run in runs:
        answers = {split: one_class(run.metrics[split]) for split in SPLITS}
        if sets := " and ".join(f"{split} ({word})" for split, word in answers.items() if word):
            said.append(f"{run.name} answers one class only on {sets}, as a constant does.")
        if run.metrics["training"]["stopped"] == "max_steps":
            said.append(f"{run.name} was cut short by --max_steps: a trial, not a result.")
    return said


def comparison_table(runs: list[Run]) -> str:
    """The results as aligned plain text of at most 100 columns, the remarks below."""
    spec, lines = columns(RESULTS), []
    for row in ([heading for heading, _, _ in spec], *result_rows(runs)):
        if isinstance(row, str):
            lines += ["", row]
            continue
        cells = [
            (shorten(cell, w - 1), kind, w) for cell, (_, kind, w) in zip(row, spec, strict=True)
        ]
        line = "".join(c.ljust(w) if kind == "l" else c.rjust(w) for c, kind, w in cells)
        lines.append(line.rstrip())
    return "\n".join([*lines, "", *(textwrap.fill(remark, 98) for remark in remarks(runs))])


def listed(facts: dict) -> str:
    shown = {k: v[:12] if k == "fingerprint" else v for k, v in facts.items() if v is not None}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def by_text(runs: list[Run], describe: Callable[[Run], str]) -> str:
    """``describe`` of every run: once where all agree, else with the names it holds for."""
    groups = grouped(runs, describe)
    named = [f"{', '.join(r.name for r in same)}: {text}" for text, same in groups.items()]
    return ("; ".join(named) if len(groups) > 1 else next(iter(groups))) + "."


def comparability(run: Run) -> str:
    """Whether a run may be read against the published rows, and why not."""
    data, base, reasons = run.metrics["data"], run.metrics["base"]["name"], []
    if (data["in_domain_train"]["sentences"], data["in_domain_dev"]["acceptable"]) != (8551, 365):
        reasons.append(f"the corpus is {shorten(data['name'], 40)}, not CoLA")
    if base not in ("gpt2", "gpt2-medium"):
        reasons.append(f"the base weights are {shorten(base, 40)}, not the published ones")
    if reasons:
        return f"not comparable ({' and '.join(reasons)})"
    return f"comparable (the corpus is CoLA, the base weights go by the name {base})"


def what_was_run(runs: list[Run]) -> Iterator[tuple]:
    yield "heading", "What was run"
    rows = []
    for run in runs:
        training, options = run.metrics["training"], dict(run.metrics["arguments"])
        batch, lr, epochs = (str(options.pop(key, "")) for key in ("batch_size", "lr", "epochs"))
        if run.metrics["teacher"]:
            options["teacher"] = Path(run.metrics["teacher"]["folder"]).name
        rows += [run.metrics["command"], (
            run.mode, listed(options), batch, lr,
            f"{training['epochs']}/{epochs}", f"{training['steps']:,}",
            f"{training['seconds']:,.0f}",
            millions(run), millions(run, "trainable"),
        )]  # fmt: skip
    caption = "The runs: epochs done of those allowed, steps, seconds of training, parameters."
    spec = "mode l5, options l27, batch r5, lr r5, epochs r6, steps r6, seconds r7, params r8"
    yield "Table", caption, f"{spec}, trainable r8", rows
    based = [run for run in runs if run.metrics["base"]["fingerprint"]] or runs
    hardware = by_text(runs, lambda run: listed(run.metrics["hardware"]))
    versions = by_text(runs, lambda run: listed(run.metrics["versions"]))
    weights = by_text(based, lambda run: listed(run.metrics["base"]))
    yield "facts", f"Hardware: {hardware} Versions: {versions} Base weights: {weights}"
    rows = []
    for same in grouped(runs, lambda run: json.dumps(run.metrics["data"])).values():
        data, readers = same[0].metrics["data"], ", ".join(v for v, _ in by_variant(same))
        rows.append(f"{data['name']} (SHA-256 {data['sha256'][:12]}…), in tokens of {readers}")
        for split in ("in_domain_train", *SPLITS):
            n, tokens, yes = (data[split][key] for key in ("sentences", "tokens", "acceptable"))
            share = f"{100 * yes / n:.2f}"
            rows.append((split, f"{n:,}", f"{tokens:,}", f"{tokens / n:.1f}", f"{yes:,}", share))
    spec = "set l18, sentences r10, tokens r10, tokens each r12, acceptable r10, share % r10"
    yield "Table", "The data.", spec, rows


def results(runs: list[Run]) -> Iterator[tuple]:
    yield "heading", "Results"
    for variant, same in by_variant(runs):
        caption = (
            f"{shorten(variant, 40)}: accuracy and MCC of the models kept, with 95% intervals "
            "(Wilson for accuracy, bootstrap for MCC); the broken lines are the majority baselines."
        )
        yield "Figure", caption, draw_comparison(same)
    caption = (
        "The results, and the published ones below. Intervals are of 95%: Wilson for accuracy, "
        "percentile bootstrap of 2,000 resamples for MCC. The epoch is the one kept."
    )
    yield "Table", caption, RESULTS, [*result_rows(runs), *PUBLISHED]
    yield "facts", f"Beside the published rows, ours are: {by_text(runs, comparability)}"
    if rows := paired_rows(runs):
        caption = (
            "Pairs on the same sentences: the first minus the second in points of accuracy and in "
            "MCC, the sentences only one of them got right, and the exact McNemar p of those two "
            "counts being an even split, not corrected for the number of tests."
        )
        spec = "pair l17, variant l19, set l17, accuracy r8, MCC r8, only 1st r8, only 2nd r8, p r7"
        yield "Table", caption, spec, rows
    for variant, same in by_variant(runs):
        caption = (
            f"{shorten(variant, 40)}: loss and accuracy per epoch. Titles give accuracy and MCC of "
            "the epoch kept; the number at the right is the majority baseline."
        )
        yield "Figure", caption, draw_variant(same)
    yield "heading", "Size and speed of the student"
    caption = (
        "What is saved and how fast it judges; ratios to the variant’s first row, the teacher."
    )
    spec = "mode l9, variant l30, params r10, ratio r8, megabytes r14, sentences/s r14, ratio r8"
    yield "Table", caption, spec, size_rows(runs)


def limits(runs: list[Run]) -> Iterator[tuple]:
    yield "heading", "What these numbers cannot say"
    score = runs[0].metrics["in_domain_dev"]
    low, high = wilson_interval(score["correct"], score["sentences"])
    nano = "nano is a demonstration and a test bed: what it shows of its grammar is not English."
    for text in (
        f"One dev set. With {score['sentences']:,} sentences the 95% interval of {runs[0].name} is "
        f"{100 * (high - low):.1f} points wide. A smaller difference between two models means "
        "little unless the paired test says otherwise.",
        "The epoch was selected on in_domain_dev, which makes the figures on it optimistic. "
        "out_of_domain_dev was looked at once, at the end, and selected nothing; its sentences are "
        "of other kinds, so a lower score there is not overfitting alone.",
        f"One seed (sr_no {runs[0].metrics['sr_no']}). Intervals and tests cover the choice of dev "
        "sentences, not that of initial weights and batch order, which can move a result as much.",
        "The published results are single figures without MCC or the answers behind them: no "
        "paired test with them is possible; their intervals come from the counts.",
        *([nano] if any(run.variant == "nano" for run in runs) else []),
        *remarks(runs),
    ):
        yield "bullet", text


def contents(runs: list[Run]) -> Iterator[tuple]:
    """The report, item by item.

    Items are (style, text), ("Table", caption, columns, rows) and ("Figure", caption, figure).
    """
    metrics, names = runs[0].metrics, ", ".join(run.name for run in runs)
    yield "title", "Judging acceptability with LoRA and a distilled student"
    yield "subtitle", f"Report of sr_no {metrics['sr_no']}: {names}"
    abstract = (
        "GPT-2 is fine-tuned with LoRA to judge whether a sentence is acceptable English. "
        "DistilRNN, a one-layer recurrent network, is trained with that model as its teacher "
        "(distil) and without (rnn). Accuracy stands beside the Matthews correlation (MCC), "
        "CoLA’s official metric, because the majority baseline, the more frequent label for "
        "every sentence, scores "
        f"{majority(metrics['in_domain_dev']):.2f}% on in_domain_dev of {metrics['data']['name']} "
        "with an MCC of 0."
    )
    yield "body", " ".join([abstract, *remarks(runs)])
    yield from what_was_run(runs)
    yield from results(runs)
    yield from limits(runs)


# ---------------------------------------------------------------------------------------------
# Typesetting

WIDTH = 6.5 * 72  # points: the width of the text, and of every figure
LEFT = ParagraphStyle("l", fontName="STIX", fontSize=8.5, leading=10)
BODY = ParagraphStyle("body", LEFT, fontSize=10, leading=12.5, alignment=4, spaceAfter=5)
STYLES = {
    "l": LEFT,
    "r": ParagraphStyle("r", LEFT, alignment=2),
    "span": ParagraphStyle("span", LEFT, fontName="STIX-Italic"),
    "body": BODY,
    "facts": ParagraphStyle("facts", BODY, alignment=0),  # long names would tear justified lines
    "bullet": ParagraphStyle("bullet", BODY, leftIndent=12, bulletIndent=2, spaceAfter=3),
    "caption": ParagraphStyle("caption", BODY, fontSize=9, leading=11, spaceBefore=4),
    "heading": ParagraphStyle("heading", BODY, fontName="STIX-Bold", fontSize=12, spaceBefore=8),
    "title": ParagraphStyle("title", BODY, fontSize=18, leading=24, alignment=1),
    "subtitle": ParagraphStyle("subtitle", BODY, alignment=1, spaceAfter=10),
}
RULES = [
    ("LINEABOVE", (0, 0), (-1, 0), 0.9, "black"), ("LINEBELOW", (0, 0), (-1, 0), 0.4, "black"),
    ("LINEBELOW", (0, -1), (-1, -1), 0.9, "black"), ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ("LEFTPADDING", (0, 0), (-1, -1), 3), ("RIGHTPADDING", (0, 0), (-1, -1), 3),
    ("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
    ("BOTTOMPADDING", (0, -1), (-1, -1), 4),
]  # fmt: skip


def booktabs(spec: str, rows: list) -> Table:
    """A table with horizontal rules only; a row that is a string spans all columns."""
    headings, kinds, widths = zip(*columns(spec), strict=True)
    cells, style = [], list(RULES)
    for y, row in enumerate([headings, *rows]):
        if isinstance(row, str):
            cells.append([Paragraph(escape(row), STYLES["span"])])
            style += [("SPAN", (0, y), (-1, y)), ("TOPPADDING", (0, y), (-1, y), 5)]
        else:
            texts = [
                c.replace("-", "−") if k == "r" else c for c, k in zip(row, kinds, strict=True)
            ]
            texts = zip(texts, kinds, strict=True)
            cells.append([Paragraph(escape(text), STYLES[kind]) for text, kind in texts])
    widths = [WIDTH * width / sum(widths) for width in widths]
    return Table(cells, widths, style=style, repeatRows=1, spaceAfter=9)


def flowables(items: Iterator[tuple]) -> Iterator[KeepTogether]:
    """The items typeset, tables and figures numbered; a heading stays with what follows it."""
    block, numbers = [], Counter()
    for kind, text, *body in items:
        numbers[kind] += 1
        label = f"<b>{kind} {numbers[kind]}.</b> " if body else ""
        bullet = "•" if kind == "bullet" else None
        style = STYLES["caption" if body else kind]
        block.append(Paragraph(label + escape(text), style, bulletText=bullet))
        if kind == "Table":
            block.append(booktabs(*body))
        elif kind == "Figure":
            size = 72 * body[0].get_size_inches()
            block.insert(-1, Image(BytesIO(png(body[0], dpi=300)), *size))
        if kind != "heading":
            yield KeepTogether(block)
            block = []


def draw_page_number(canvas, document: SimpleDocTemplate) -> None:
    canvas.setFont("STIX", 9)
    canvas.drawCentredString(A4[0] / 2, 36, str(document.page))


def typeset(items: Iterator[tuple], title: str) -> bytes:
    """The items as an A4 PDF, in the STIX fonts that come with matplotlib."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for name, file in (("STIX", ""), ("STIX-Italic", "Italic"), ("STIX-Bold", "Bol")):
        pdfmetrics.registerFont(TTFont(name, fonts / f"STIXGeneral{file}.ttf"))
    pdfmetrics.registerFontFamily("STIX", "STIX", "STIX-Bold", "STIX-Italic", "STIX-Bold")
    side = (A4[0] - WIDTH) / 2 - 6  # reportlab's frame pads by 6
    margins = {"leftMargin": side, "rightMargin": side, "topMargin": 52, "bottomMargin": 52}
    document = SimpleDocTemplate(pdf := BytesIO(), pagesize=A4, title=title, invariant=1, **margins)
    story = list(flowables(items))
    document.build(story, onFirstPage=draw_page_number, onLaterPages=draw_page_number)
    return pdf.getvalue()


@matplotlib.rc_context(PICTURE_STYLE)
def run_report(args: Namespace) -> None:
    """Write plots and PDF, and print the table, of the runs of ``args.sr_no``.

    Raises UserError where there is no run, a file of one is broken, or nothing can be written.
    """
    runs, plots = find_runs(args.out_dir, args.sr_no), Path(args.out_dir, "plots")
    for run in runs:
        plot_run(run.folder, plots)
    plot_comparison(runs, plots)
    pdf = typeset(contents(runs), f"Report of sr_no {args.sr_no}")
    path = save(Path(args.out_dir, f"Report_{args.sr_no}.pdf"), pdf)
    print(f"{comparison_table(runs)}\n\nreport: {path}\nplots:  {plots}")
