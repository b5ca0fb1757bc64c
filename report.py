"""`Report_<sr_no>.pdf`: what it shows, in which order, of the runs of one sr_no or several.

The tables are made in support/tables.py, the statistics in support/statistics.py.
"""

from argparse import Namespace
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from reportlab.platypus import Flowable

from support.corpus import DEV
from support.bases.loading import variant_name
from support.reporting import tables
from support.reporting.finished import Series, find_runs
from support.reporting.pages import HEADING, TITLE, figure, table, text, write_pdf
from support.reporting.plots import plot_comparison, plot_curves, plot_reliability
from support.reporting.statistics import wilson_interval

ABSTRACT = """A pretrained decoder is fine-tuned with LoRA to judge whether a sentence is acceptable
English. DistilRNN, a one-layer recurrent network, is trained with that model as its teacher
(distil) and without (rnn). Beside accuracy stand the majority baseline (the more frequent label for
every sentence) and CoLA's official metric, the Matthews correlation (MCC; 0 for that baseline)."""
COMPARABLE = """To be read against the published rows, a run must start from the weights gpt2 or
gpt2-medium, on CoLA's 8,551, 527 and 516 sentences, with the published settings. """
ONE_RUN = """Intervals and p cover the choice of dev sentences, not that of initial weights and
batch order: another seed can move a result as much. """
SEVERAL_RUNS = """Intervals and p cover the choice of dev sentences and that of seeds, both taken as
drawn at random (two crossed random effects, degrees of freedom after Satterthwaite; MCC by its
jackknife pseudo-values); differences are paired by sr_no and by sentence. ± is the standard
deviation over the sr_no. """
LIMITS = """The p are not corrected for their number. The epoch
was selected on in_domain_dev, which flatters the results there; out_of_domain_dev was looked at
once, at the end. The published results are single figures without MCC: no paired test with them is
possible. nano is a demonstration: what it shows of its own grammar is not English, and its
out_of_domain_dev was redesigned after looks at it (nano/README.md)."""


def story(found: list[Series], serial: str, plots: Path) -> Iterator[Flowable]:
    """The report's parts in order."""
    several = len(found[0].runs) > 1
    yield text(f"LoRA and a distilled student, sr_no {serial}", TITLE)
    yield text(ABSTRACT)
    yield text("What was run", HEADING)
    yield from table("What was trained, on what.", tables.trained_rows(found), left=2)
    yield from table("How; all settings stand at the end.", tables.recipe_rows(found), left=2)
    yield text("Results", HEADING)
    what = "mean and standard deviation over the sr_no; then" if several else "then"
    caption = f"The models kept; {what} the published."
    yield from table(caption, tables.result_rows(found) + tables.PUBLISHED, left=3)
    apart = {series.name: tables.differences_from_published(series) for series in found}
    comparable = ", ".join(name for name, differing in apart.items() if not differing) or "none"
    others = [f"{name} ({', '.join(differing)})" for name, differing in apart.items() if differing]
    words = f"Comparable here: {comparable}. Not comparable: {'; '.join(others) or 'none'}."
    yield text(COMPARABLE + words)
    for variant, group in groupby(found, lambda series: series.variant):
        yield from one_variant(variant, list(group), serial, plots)
    yield text("What these numbers cannot say", HEADING)
    n = found[0].metrics["data"][DEV]["sentences"]
    low, high = (100 * end for end in wilson_interval(round(0.8 * n), n))
    width = f"On {n} sentences an accuracy of 80% means anything from {low:.1f}% to {high:.1f}%. "
    yield text(width + (SEVERAL_RUNS if several else ONE_RUN) + LIMITS)
    yield text("All settings", HEADING)
    yield from table("metrics.json, but for the results.", tables.settings_rows(found), left=3)


def one_variant(variant: str, same: list[Series], serial: str, plots: Path) -> Iterator[Flowable]:
    """The figures and tables of one base and its students."""
    several = len(same[0].runs) > 1
    yield text(f"On in_domain_dev {tables.findings(same)}")
    picture = plot_comparison(same, plots, serial)
    each = "; small: each run" if several else ""
    yield from figure(f"{variant}: the models kept, with 95% intervals{each}.", picture)
    if several:
        yield from table(f"{variant}: each run.", tables.run_rows(same), left=2)
    if len(rows := tables.paired_rows(same)) > 1:
        test = "with crossed random effects" if several else "with McNemar's p"
        yield from table(f"{variant}: pairs, {test}.", rows, left=2)
    if len(rows := tables.agreement_rows(same)) > 1:
        caption = "a student and its teacher; a margin is the difference of the two logits."
        yield from table(f"{variant}: {caption}", rows, left=2)
    caption = f"by source; those of fewer than {tables.SMALLEST_SOURCE} sentences are one."
    yield from table(f"{variant}: {caption}", tables.source_rows(same), left=2)
    yield from table(f"{variant}: calibration.", tables.calibration_rows(same), left=2)
    caption = "how often the sentences are acceptable that a model calls so with probability p."
    yield from figure(f"{variant}: {caption}", plot_reliability(same, plots, serial))
    yield from table(f"{variant}: size and speed on the CPU.", tables.size_rows(same))
    for series in same:
        each = "; thin: each run, thick: their mean" if several else ""
        if series.metrics["arguments"].get("held_out"):
            each += "; before the bias was fitted"
        name = f"{series.mode}_{variant}_{serial}"
        paths = plot_curves(name, [run.folder for run in series.runs], plots)
        yield from figure(f"{series.name}, epoch by epoch{each}.", *paths)


def run_report(args: Namespace) -> None:
    """Write plots and PDF, and print the table, of the runs of ``args.sr_nos``.

    They are all that are found on disk, or those of one variant where that is named or trained.
    """
    named = args.mode == "all" or "gpt_variant" in args.given
    variant = variant_name(args.gpt_variant) if named else None
    found, plots = find_runs(args.out_dir, args.sr_nos, variant), Path(args.out_dir, "plots")
    path = Path(args.out_dir, f"Report_{args.serial}.pdf")
    write_pdf(path, story(found, args.serial, plots))
    print(f"{tables.comparison_table(found)}\n\nreport: {path}\nplots:  {plots}")
