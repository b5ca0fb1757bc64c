"""How do the runs of one variant compare?"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from support.reporting.curves import BLUE, save
from support.reporting.finished import DEV_SETS, MODES, Series

RED, GREEN = "#D55E00", "#009E73"
BINS = 10  # of the reliability plot
FEWEST = 10  # sentences in a bin that is drawn


def plot_comparison(group: list[Series], plots_dir: Path, serial: str) -> Path:
    """Draw accuracy and MCC with their intervals on both dev sets; of several runs also each."""
    figure = Figure(figsize=(6.5, 1 + 0.5 * len(group)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    # Marker, line, colour, inside of the marker, and place within the row, of each dev set.
    looks = (("o", "-", BLUE, BLUE, -0.18), ("D", "--", RED, "white", 0.18))
    for split, (marker, line, colour, inside, shift) in zip(DEV_SETS, looks, strict=True):
        panels[0].plot([], [], marker + line, color=colour, markerfacecolor=inside, label=split)
        for row, series in enumerate(group):
            s, place = series.scores[split], row + shift
            accuracy = s.accuracy, s.accuracies, f"{s.accuracy.value:.2%}"
            mcc = s.mcc, s.mccs, f"{s.mcc.value:.3f}{s.remark}"
            for axes, (mean, each, words) in zip(panels, (accuracy, mcc), strict=True):
                axes.hlines(place, mean.low, mean.high, colour, line)
                axes.plot(mean.value, place, marker, color=colour, markerfacecolor=inside)
                if len(each) > 1:
                    axes.plot(each, [place] * len(each), "|", color=colour, ms=5)
                axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center")
    baselines = {group[0].scores[split].majority: split for split in DEV_SETS}
    for (level, split), line in zip(baselines.items(), (":", "-."), strict=False):
        of = f" of {split}" if len(baselines) > 1 else ""  # one line where both are equal
        label = f"majority baseline{of}, {level:.2%}"
        panels[0].axvline(level, color="0.35", linestyle=line, zorder=0, label=label)
    panels[1].axvline(0, color="0.35", linestyle=":", zorder=0)
    panels[0].set_yticks(range(len(group)), [f"{s.mode} ({MODES[s.mode]})" for s in group])
    panels[0].set(xlabel="accuracy, 95% interval", ylim=(len(group) - 0.5, -0.5))
    panels[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[1].set(xlabel="MCC, 95% interval; 0 is any constant answer")
    figure.legend(loc="outside upper center", ncols=2)
    return save(figure, plots_dir / f"comparison_{group[0].variant}_{serial}.png")


def plot_reliability(group: list[Series], plots_dir: Path, serial: str) -> Path:
    """Draw how often sentences are acceptable against how probably the models call them so."""
    figure = Figure(figsize=(6.5, 3.1), layout="constrained")
    looks = {"LoRA": ("o-", BLUE), "distil": ("D--", RED), "rnn": ("s:", GREEN)}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, split in zip(panels, DEV_SETS, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", lw=0.8, zorder=0)
        for series in group:
            p = series.p_acceptable(split)  # (runs, sentences), all in the same bins
            labels = np.broadcast_to(series.labels(split), p.shape).ravel()
            bins = np.minimum((p.ravel() * BINS).astype(int), BINS - 1)
            sizes = np.bincount(bins, minlength=BINS)
            drawn = sizes >= FEWEST * len(p)
            means = [np.bincount(bins, x, BINS)[drawn] / sizes[drawn] for x in (p.ravel(), labels)]
            line, colour = looks[series.mode]
            axes.plot(*means, line, color=colour, ms=4, mfc="white", label=series.mode)
        axes.set(title=split, xlabel="probability of acceptable", xlim=(0, 1), ylim=(0, 1))
    panels[0].set(ylabel="share acceptable")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return save(figure, plots_dir / f"reliability_{group[0].variant}_{serial}.png")
