"""How do the runs of one variant compare?"""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from support.reporting.curves import BLUE, STYLE, save
from support.reporting.finished import ROLES, Experiment

RED = "#D55E00"


@rc_context(STYLE)
def plot_comparison(group: list[Experiment], plots_dir: Path, serial: str) -> Path:
    """Draw accuracy and MCC with their intervals on each dev set; of several runs also each."""
    figure = Figure(figsize=(6.5, 1 + 0.5 * len(group)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    dev_sets = group[0].dev_sets
    # Marker, line, colour, inside of the marker, and place within the row, of each of two dev sets.
    looks = (("o", "-", BLUE, BLUE, -0.18), ("D", "--", RED, "white", 0.18))
    for split, (marker, line, colour, inside, shift) in zip(dev_sets, looks, strict=False):
        panels[0].plot([], [], marker + line, color=colour, markerfacecolor=inside, label=split)
        for row, experiment in enumerate(group):
            s, place = experiment.scores[split], row + shift * (len(dev_sets) - 1)
            accuracy = s.accuracy, s.accuracies, f"{s.accuracy.value:.2%}"
            mcc = s.mcc, s.mccs, f"{s.mcc.value:.3f}{s.remark}"
            for axes, (mean, each, words) in zip(panels, (accuracy, mcc), strict=True):
                axes.hlines(place, mean.low, mean.high, colour, line)
                axes.plot(mean.value, place, marker, color=colour, markerfacecolor=inside)
                if len(each) > 1:
                    axes.plot(each, [place] * len(each), "|", color=colour, ms=5)
                axes.text(1.02, place, words, transform=axes.get_yaxis_transform(), va="center")
    baselines = {group[0].scores[split].majority: split for split in dev_sets}
    for (level, split), line in zip(baselines.items(), (":", "-."), strict=False):
        of = f" of {split}" if len(baselines) > 1 else ""  # one line where both are equal
        label = f"majority baseline{of}, {level:.2%}"
        panels[0].axvline(level, color="0.35", linestyle=line, zorder=0, label=label)
    panels[1].axvline(0, color="0.35", linestyle=":", zorder=0)
    names = [f"{experiment.mode} ({ROLES[experiment.mode]})" for experiment in group]
    panels[0].set_yticks(range(len(group)), names)
    panels[0].set(xlabel="accuracy, 95% interval", ylim=(len(group) - 0.5, -0.5))
    panels[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[1].set(xlabel="MCC, 95% interval; 0 is any constant answer")
    figure.legend(loc="outside upper center", ncols=2)
    return save(figure, plots_dir / f"comparison_{group[0].variant}_{serial}.png")
