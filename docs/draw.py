"""Draw the pictures of evening.md beside it: `python -m docs.draw`."""

import json
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tokenizers import Tokenizer

from support import PROJECT
from support.reporting.curves import BLUE, ORANGE, STYLE, save

SENTENCES = (  # the longest first, as in a packed batch
    "That queen will praise herself.",
    "That queen will praise himself.",
    "The sons will annoy.",
)
COLOURS = ("#CCE3F0", "#FBEBCC", "#CCECE3")  # pale blue, orange and green
RUN = PROJECT / "results/smollm2_student/runs/distil_smollm2_22915"


def main(folder: Path = PROJECT / "docs") -> None:
    """Draw all three."""
    pictures = {"packing": packing(), "lora": lora(), "margins": margins()}
    for name, figure in pictures.items():
        save(figure, folder / f"evening_{name}.png")


@rc_context(STYLE)
def packing() -> Figure:
    """Draw sentences as a padded rectangle, and end to end."""
    tokenizer = Tokenizer.from_file(str(PROJECT / "nano/tokenizer.json"))
    rows = [encoding.tokens for encoding in tokenizer.encode_batch(list(SENTENCES))]
    longest, ends = max(map(len, rows)), [0]
    figure = Figure(figsize=(8.5, 2.5), layout="constrained")
    axes = blank(figure, (-0.3, 17.3), (-1.1, 5))
    for number, (row, colour) in enumerate(zip(rows, COLOURS, strict=True)):
        for place in range(len(row), longest):
            box(axes, place, 4 - 0.8 * number, 1, "padding", "white")
        for place, token in enumerate(row):
            box(axes, place, 4 - 0.8 * number, 1, token.lstrip("Ġ"), colour)
            box(axes, ends[-1] + place, 0, 1, token.lstrip("Ġ"), colour)
        ends.append(ends[-1] + len(row))
    axes.text(longest + 0.4, 3.6, "padded to a rectangle", va="center")
    axes.text(longest + 0.4, 1.3, "packed end to end; the bounds are cu_seqlens", va="center")
    for end in ends:
        axes.plot([end, end], [-0.3, 0.8], color="black", lw=1.5)
        axes.text(end, -0.4, str(end), ha="center", va="top")
    return figure


@rc_context(STYLE)
def lora() -> Figure:
    """Draw a weight as the sum of what is frozen and the product of what trains."""
    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axes = blank(figure, (-0.2, 13.8), (-0.9, 4.2))
    box(axes, 0, 0, 3, "W0 + B A", "#E8E8E8", height=4)
    axes.text(3.7, 2, "=", ha="center", va="center", fontsize=16)
    box(axes, 4.4, 0, 3, "W0\nfrozen", "#E8E8E8", height=4)
    axes.text(8.1, 2, "+", ha="center", va="center", fontsize=16)
    box(axes, 8.8, 0, 0.75, "B", COLOURS[1], height=4)
    box(axes, 9.9, 3.25, 3, "A", COLOURS[1], height=0.75)
    axes.text(9.9, 1.6, "B and A are trained", va="center")
    axes.text(5.9, -0.2, "out × in", ha="center", va="top")
    axes.text(9.2, -0.2, "out × r", ha="center", va="top")
    axes.text(11.4, 3.05, "r × in", ha="center", va="top")
    return figure


@rc_context(STYLE)
def margins() -> Figure:
    """Draw the margins of both classes, and the two thresholds of the student."""
    table = pd.read_csv(RUN / "predictions.csv").query("split == 'in_domain_dev'")
    margin = table["logit_1"] - table["logit_0"]
    thresholds = json.loads((RUN / "metrics.json").read_text())["thresholds"]
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    axes = figure.subplots()
    bins = [0.5 * number for number in range(-12, 11)]
    good, bad = (margin[table["label"] == label] for label in (1, 0))
    axes.hist(bad, bins, color=ORANGE, alpha=0.7, label=f"{len(bad)} unacceptable")
    axes.hist(good, bins, histtype="step", color=BLUE, lw=2, label=f"{len(good)} acceptable")
    for (rule, threshold), side in zip(thresholds.items(), ("left", "right"), strict=True):
        axes.axvline(threshold, color="black", ls="--", lw=1)
        axes.annotate(
            f" {rule} ", (threshold, 1.0), xycoords=("data", "axes fraction"), ha=side, va="bottom"
        )
    axes.set(xlabel="margin: logit 1 less logit 0", ylabel="sentences")
    axes.legend(loc="upper left")
    return figure


def blank(figure: Figure, across: tuple[float, float], up: tuple[float, float]) -> Axes:
    """Return axes without ticks or frame."""
    axes = figure.subplots()
    axes.set(xlim=across, ylim=up)
    axes.axis("off")
    return axes


def box(
    axes: Axes, x: float, y: float, width: float, text: str, colour: str, height: float = 0.8
) -> None:
    """Draw a box with a text in it."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="0.4"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


if __name__ == "__main__":
    main()
