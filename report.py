"""`Report_<sr_no>.pdf` and `.html`: what they show, in which order, of one sr_no or several."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from pandas import concat
from reportlab.platypus import Flowable

from support.bases import variant_name
from support.reporting import tables
from support.reporting.curves import plot_curves
from support.reporting.finished import Series, find_runs, missing_runs
from support.reporting.page import write_page
from support.reporting.pdf import TITLE, Figure, heading, table, text, write_pdf
from support.reporting.plots import plot_comparison, plot_reliability
from support.reporting.wording import COMPARABLE, HEADLINE, lead, limits


def story(shown: list[Series], serial: str, plots: Path, missing: list[str]) -> Iterator[Flowable]:
    """Yield the report's parts in order."""
    yield text(HEADLINE.format(serial), TITLE)
    yield from map(text, lead(missing))
    for group in tables.grouped(shown, "corpus").values():
        frame, caption = tables.result_table(group), tables.corpus_facts(group[0])
        if tables.is_cola(group[0]):
            frame = concat([frame, tables.PUBLISHED])
            caption = f"{caption} {tables.PUBLISHED_CAPTION}"
        yield from table(caption, frame, left=2)
        yield from map(text, tables.without_training(group))
        if tables.is_cola(group[0]):
            alike = [s.name for s in group if not tables.differences_from_published(s)]
            yield text(COMPARABLE.format(", ".join(alike) or "none"))
    for variant, group in tables.grouped(shown, "variant").items():
        yield from one_variant(variant, group, serial, plots)
    yield from heading("What these numbers cannot say")
    yield from map(text, limits(shown))
    yield from heading("All settings")
    yield from table("metrics.json, but for the results.", tables.settings_table(shown), 3, last=72)


def one_variant(variant: str, group: list[Series], serial: str, plots: Path) -> Iterator[Flowable]:
    """Yield the figures and tables of one base and its students."""
    yield from heading(variant)
    yield text(f"On in_domain_dev {tables.findings(group)}")
    yield from table("What was trained, on what, for how long.", tables.facts_table(group), left=4)
    picture = plot_comparison(group, plots, serial)
    yield Figure(f"{variant}: the models kept, with 95% intervals; small: each run.", picture)
    captions = {
        "each run.": tables.run_table,
        "pairs; of a single run McNemar's p.": tables.paired_table,
        "confidence, and agreement of answers and margins with LoRA's.": tables.confidence_table,
        "by source, small ones together.": tables.source_table,
    }
    for caption, table_of in captions.items():
        yield from table(f"{variant}: {caption}", table_of(group), left=2)
    caption = "how often the sentences are acceptable that a model calls so with probability p."
    yield Figure(f"{variant}: {caption}", plot_reliability(group, plots, serial))
    for series in group:
        then = "; before a threshold was set" * bool(series.metrics["arguments"].get("held_out"))
        name = f"{series.mode}_{variant}_{serial}"
        paths = plot_curves(name, [run.folder for run in series.runs], plots)
        yield Figure(f"{series.name}, epoch by epoch{then}.", *paths)


def write_report(path: Path, shown: list[Series], serial: str, plots: Path, *missing: str) -> None:
    """Write the PDF, and the plots that it shows into ``plots``."""
    write_pdf(path, story(shown, serial, plots, list(missing)))


def write_html(path: Path, shown: list[Series], serial: str, *missing: str) -> None:
    """Write the page with every judgement."""
    write_page(path, HEADLINE.format(serial), shown, lead(list(missing)), limits(shown))


def run_report(args: Namespace) -> None:
    """Write plots, PDF and page, and print the table, of the finished runs of ``args.sr_nos``.

    They are all that are on disk, or those of one variant where that is named or trained.
    """
    named = args.mode == "all" or "gpt_variant" in args.given
    which = args.out_dir, args.sr_nos, variant_name(args.gpt_variant) if named else None
    shown, missing, plots = find_runs(*which), missing_runs(*which), Path(args.out_dir, "plots")
    for line in missing:
        print(f"run.py: not in the report: {line}", file=sys.stderr)
    path = Path(args.out_dir, f"Report_{args.serial}.pdf")
    write_report(path, shown, args.serial, plots, *missing)
    write_html(page := path.with_suffix(".html"), shown, args.serial, *missing)
    print(f"{tables.comparison_table(shown)}\n\nreport: {path}\npage:   {page}\nplots:  {plots}")
