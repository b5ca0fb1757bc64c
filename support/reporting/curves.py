"""How did a run go, epoch by epoch? Colours after Okabe and Ito (2008)."""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pandas import DataFrame

from support.corpus import DEV
from support.files import write_bytes
from support.reporting import metrics

STYLE = {
    "font.family": "STIXGeneral", "text.parse_math": False, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip
ORANGE, BLUE = "#E69F00", "#0072B2"


@rc_context(STYLE)
def plot_curves(name: str, folders: list[Path], plots_dir: Path) -> list[Path]:
    """Draw the loss and the accuracy of finished runs per epoch, train and validation.

    Of several runs each is drawn thin, and their mean, as far as all of them go, thick.
    """
    runs = [metrics.read_metrics(folder) for folder in folders]
    best = [run["training"]["best_epoch"] for run in runs]
    tables = [metrics.read_history(*pair) for pair in zip(folders, best, strict=True)]
    accuracy, mcc = (np.mean([run[DEV][key] for run in runs]) for key in ("accuracy", "mcc"))
    title = f"{runs[0]['mode']} {metrics.cut(runs[0]['variant'])}: {accuracy:.2%}, MCC {mcc:.3f}"
    title += f", mean of {len(runs)} runs" if len(runs) > 1 else ""
    title += metrics.one_class_remark([metrics.one_class(run[DEV]) for run in runs])
    paths = []
    for quantity in ("loss", "accuracy"):
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        axes = figure.subplots()
        looks = (("train", "train", "s--", ORANGE, "white"), (DEV, "val", "o-", BLUE, BLUE))
        for label, split, line, colour, inside in looks:
            curves = DataFrame([table[f"{split}_{quantity}"] for table in tables]).T  # by epoch
            if len(runs) > 1:
                axes.plot(curves.index + 1, curves, line[1:], color=colour, lw=0.6, alpha=0.6)
            mean = curves.mean(axis=1, skipna=False)
            axes.plot(mean.index + 1, mean, line, color=colour, mfc=inside, ms=4, label=label)
        chosen = [table[f"val_{quantity}"][e - 1] for table, e in zip(tables, best, strict=True)]
        # A ring around the point, which stays visible.
        axes.plot(best, chosen, "ko", markersize=10, fillstyle="none", label="epoch kept")
        if quantity == "accuracy":
            level = metrics.majority(runs[0][DEV]["sentences"], runs[0][DEV]["acceptable"])
            axes.axhline(level, color="0.35", ls=":", label="majority baseline")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=quantity, title=title)
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1, fontsize=9)
        paths.append(save(figure, plots_dir / f"{name}_{quantity}.png"))
    return paths


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole."""
    figure.savefig(png := BytesIO(), dpi=250)
    write_bytes(path, png.getvalue())
    return path
