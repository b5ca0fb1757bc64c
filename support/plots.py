"""What do the runs look like? Colours after Okabe and Ito (2008)."""

from io import BytesIO
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from data_utils import DEV
from support.files import write_bytes
from support.finished_runs import DEV_SETS, MODES, Run
from support.metrics import majority, read_history, read_metrics, summary

rcParams.update({"font.family": "STIXGeneral", "text.parse_math": False, "axes.titlesize": 10})
rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def plot_run(folder: Path, plots_dir: Path) -> None:
    """Write the loss and the accuracy of a finished run per epoch, train and validation."""
    metrics = read_metrics(folder)
    best, dev = metrics["training"]["best_epoch"], metrics[DEV]
    history = read_history(folder, best)
    title = f"{metrics['mode']} {metrics['variant']:.24}: {summary(dev)}"
    for quantity in ("loss", "accuracy"):
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axes = figure.subplots()
        epochs, val = history["epoch"], history[f"val_{quantity}"]
        train = history[f"train_{quantity}"]
        axes.plot(epochs, train, "s--", color="#E69F00", markerfacecolor="white", label="train")
        axes.plot(epochs, val, "o-", color="#0072B2", markersize=4, label=DEV)
        axes.plot(best, val[best - 1], "k*", markersize=9, label="epoch kept")
        if quantity == "accuracy":
            axes.axhline(majority(dev), color="0.35", linestyle=":", label="majority baseline")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=quantity, title=title)
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1, fontsize=9)
        figure.savefig(png := BytesIO(), dpi=250)
        write_bytes(plots_dir / f"{folder.name}_{quantity}.png", png.getvalue())


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
            text = summary(runs[row].metrics[split])
            axes.text(1.02, row + shift, text, transform=at_right, va="center")
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
