"""What do the runs look like? Colours after Okabe and Ito (2008)."""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from support.corpus import DEV
from support.files import write_bytes
from support.reporting.curves import read_history
from support.reporting.finished import DEV_SETS, MODES, Series
from support.reporting.metrics import majority, one_class_note, read_metrics, summary

rcParams.update({"font.family": "STIXGeneral", "text.parse_math": False, "axes.titlesize": 10})
rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
BINS = 10  # of the reliability plot
FEWEST = 10  # sentences in a bin that is drawn


def plot_curves(name: str, folders: list[Path], plots_dir: Path) -> list[Path]:
    """Draw the loss and the accuracy of finished runs per epoch, train and validation.

    Of several runs each is drawn thin, and their mean, as far as all of them go, thick.
    """
    found = [read_metrics(folder) for folder in folders]
    best = [metrics["training"]["best_epoch"] for metrics in found]
    histories = [read_history(*pair) for pair in zip(folders, best, strict=True)]
    title = f"{found[0]['mode']} {found[0]['variant']:.24}: {summary(found[0][DEV])}"
    if several := len(folders) > 1:
        accuracy, mcc = (np.mean([m[DEV][key] for m in found]) for key in ("accuracy", "mcc"))
        runs = f"mean of {len(folders)} runs"
        if one_class := sum(bool(one_class_note(m[DEV])) for m in found):
            runs += f", {one_class} of one class only"
        title = (
            f"{found[0]['mode']} {found[0]['variant']:.24}: {accuracy:.2%}, MCC {mcc:.3f}, {runs}"
        )
    paths = []
    for quantity in ("loss", "accuracy"):
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axes = figure.subplots()
        looks = (("train", "s--", "#E69F00", "white"), (DEV, "o-", "#0072B2", "#0072B2"))
        for (label, *look), split in zip(looks, ("train", "val"), strict=True):
            draw_curves(axes, [run[f"{split}_{quantity}"] for run in histories], label, *look)
        kept = [
            history[f"val_{quantity}"][epoch - 1]
            for history, epoch in zip(histories, best, strict=True)
        ]
        axes.plot(best, kept, "k*", markersize=5 if several else 9, label="epoch kept")
        if quantity == "accuracy":
            axes.axhline(majority(found[0][DEV]), color="0.35", ls=":", label="majority baseline")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=quantity, title=title)
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1, fontsize=9)
        paths.append(save(figure, plots_dir / f"{name}_{quantity}.png"))
    return paths


def draw_curves(
    axes: Axes, curves: list[list[float]], label: str, line: str, colour: str, inside: str
) -> None:
    """One curve, or the mean of several among them."""
    if len(curves) > 1:
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, line[1:], color=colour, lw=0.6, alpha=0.6)
    mean = np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)
    look = {"color": colour, "markerfacecolor": inside, "markersize": 4, "label": label}
    axes.plot(range(1, len(mean) + 1), mean, line, **look)


def plot_comparison(same: list[Series], plots_dir: Path, serial: str) -> Path:
    """Draw one variant's runs: accuracy, its interval and MCC on both dev sets, small each run."""
    figure = Figure(figsize=(6.5, 0.9 + 0.5 * len(same)), layout="constrained")
    axes = figure.subplots()
    at_right = axes.get_yaxis_transform()
    # Marker, line, colour, inside of the marker, and place within the row, of each dev set.
    looks = (("o", "-", "#0072B2", "#0072B2", -0.18), ("D", "--", "#D55E00", "white", 0.18))
    for split, (marker, line, colour, inside, shift) in zip(DEV_SETS, looks, strict=True):
        axes.plot([], [], marker + line, color=colour, markerfacecolor=inside, label=split)
        for row, series in enumerate(same):
            shown, place, words = series.scores[split], row + shift, summary(series.metrics[split])
            axes.hlines(place, shown.accuracy.low, shown.accuracy.high, colour, line)
            axes.plot(shown.accuracy.value, place, marker, color=colour, markerfacecolor=inside)
            if len(series.runs) > 1:
                each = shown.accuracies
                axes.plot(each, [place] * len(each), "|", color=colour, markersize=5)
                words = f"{shown.accuracy.value:.2%}, MCC {shown.mcc.value:.3f}{shown.remark}"
            axes.text(1.02, place, words, transform=at_right, va="center")
    baselines = {same[0].scores[split].majority: split for split in DEV_SETS}
    for (level, split), line in zip(baselines.items(), (":", "-."), strict=False):
        of = f" of {split}" if len(baselines) > 1 else ""  # one line where both are equal
        label = f"majority baseline{of}, {level:.2%}"
        axes.axvline(level, color="0.35", linestyle=line, zorder=0, label=label)
    axes.set_yticks(range(len(same)), [f"{series.mode} ({MODES[series.mode]})" for series in same])
    axes.set(xlabel="accuracy with its 95% interval", ylim=(len(same) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside upper center", ncols=2)
    return save(figure, plots_dir / f"comparison_{same[0].variant}_{serial}.png")


def plot_reliability(same: list[Series], plots_dir: Path, serial: str) -> Path:
    """Draw how often sentences are acceptable against how probably the models call them so."""
    figure = Figure(figsize=(6.5, 3.1), layout="constrained")
    looks = {"LoRA": ("o-", "#0072B2"), "distil": ("D--", "#D55E00"), "rnn": ("s:", "#009E73")}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, split in zip(panels, DEV_SETS, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", lw=0.8, zorder=0)
        for series in same:
            p = series.p_acceptable(split)  # (runs, sentences), all in the same bins
            labels = np.broadcast_to(series.labels(split), p.shape).ravel()
            bins = np.minimum((p.ravel() * BINS).astype(int), BINS - 1)
            sizes = np.bincount(bins, minlength=BINS)
            drawn = sizes >= FEWEST * len(p)
            means = [np.bincount(bins, x, BINS)[drawn] / sizes[drawn] for x in (p.ravel(), labels)]
            line, colour = looks[series.mode]
            label = series.mode if axes is panels[0] else None
            axes.plot(
                *means, line, color=colour, markersize=4, markerfacecolor="white", label=label
            )
        axes.set(title=split, xlabel="probability of acceptable", xlim=(0, 1), ylim=(0, 1))
    panels[0].set(ylabel="share acceptable")
    figure.legend(loc="outside lower center", ncols=3)
    return save(figure, plots_dir / f"reliability_{same[0].variant}_{serial}.png")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole."""
    figure.savefig(png := BytesIO(), dpi=250)
    write_bytes(path, png.getvalue())
    return path
