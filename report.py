"""`Report_<sr_no>.pdf` and `.html`: what they show, in which order, of one sr_no or several."""

import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd

from support.bases import variant_name
from support.corpus import DEV
from support.errors import UserError
from support.reporting import tables
from support.reporting.curves import plot_curves
from support.reporting.finished import Experiment, Rows, corpus_of, find_runs, missing_runs
from support.reporting.page import judged_corpus, write_page
from support.reporting.pdf import write_pdf
from support.reporting.plots import plot_comparison
from support.reporting.statistics import wilson_interval
from support.reporting.tables import Section, known_corpus

HEADLINE = "LoRA and a distilled student, sr_no {}"
ABSTRACT = """LoRA fine-tunes a pretrained decoder to judge sentences. DistilRNN, a small recurrent
network, is trained with that model as its teacher (distil) and without (rnn). Beside accuracy stand
the majority baseline (the more frequent label for every sentence) and CoLA's official metric, the
Matthews correlation (MCC; 0 for that baseline). sr_no is the seed."""
COMPARABLE = """Below the runs stand the published results, single figures without MCC, and the best
that anyone has reported for the same recipe. To be read against them, a run must start from the
hub's gpt2 or gpt2-medium (of a folder nobody knows whether it holds their weights), in fp32, with
the published settings. Comparable here: {}."""
UNKNOWN = "Whether the training split has sentences of the dev sets is not known: {}."
COVERED = """On {} sentences an accuracy of 80% means anything from {:.1%} to {:.1%}. Intervals and
p of a single run cover the choice of dev sentences, not that of weights and batch order: another
seed can move a result as much. Those of several runs cover the choice of seeds too, both taken as
drawn at random (two crossed random effects, degrees of freedom after Satterthwaite; MCC by its
jackknife pseudo-values). ± is the standard deviation over the sr_no. The p are not corrected for
their number. What all seeds share, be it a teacher, a held-out set or written sentences, no
interval and no p covers."""
LOOKS = """Where the best epoch on in_domain_dev was kept, the result there is flattered. Where a
threshold was set, and p calibrated, on held-out training sentences, a teacher of this corpus had
been trained on them. Where there is an out_of_domain_dev, each run judged it once, with the model
kept. No report can tell how often settings were changed after a look at an earlier run."""
NANO = """nano is a demonstration: what it shows of its own grammar is not English, and its
out_of_domain_dev was redesigned after looks at it (nano/README.md)."""


def results(group: list[Experiment], corpus: Rows, fault: str) -> Section:
    """Return the scores on one corpus, and beside those on CoLA the published."""
    frame, caption = tables.result_table(group), tables.corpus_facts(group[0])
    texts = tables.unseen(group, corpus) if corpus else [UNKNOWN.format(fault)]
    if known_corpus(group[0]) == "CoLA":
        frame = pd.concat([frame, tables.PUBLISHED])
        alike = [one.name for one in group if not tables.differences_from_published(one)]
        texts.append(COMPARABLE.format(", ".join(alike) or "none"))
    return Section("How good, and how sure", texts, [(caption, frame)])


def one_variant(group: list[Experiment], corpus: Rows, serial: str, plots: Path) -> Section:
    """Return the pairs, the comparison and the curves of one base and its students."""
    comparison = plot_comparison(group, plots, serial)
    pictures = [("The models kept, with 95% intervals; small: each run.", [comparison])]
    for one in group:
        then = "; before a threshold was set" if one.metrics["arguments"].get("held_out") else ""
        folders = [run.folder for run in one.runs]
        curves = plot_curves(f"{one.mode}_{one.variant}_{serial}", folders, plots)
        pictures.append((f"{one.name}, epoch by epoch{then}.", curves))
    return Section(
        group[0].variant,
        texts=[tables.findings(group), *(tables.effort(*pair) for pair in tables.pairs_of(group))],
        tables=[("Pairs; of single runs with McNemar's p.", tables.paired_table(group))],
        pictures=[(words, [path.read_bytes() for path in paths]) for words, paths in pictures],
        details=[
            ("Each run.", tables.run_table(group)),
            ("How far confidence is from accuracy.", tables.calibration_table(group)),
            ("Each source of the dev sentences.", tables.source_table(group, corpus)),
            ("metrics.json, but for the results.", tables.settings_table(group)),
        ],
    )


def write_report(
    pdf: Path, page: Path, shown: list[Experiment], serial: str, plots: Path, missing: list[str]
) -> None:
    """Write the PDF, the page with every judgement, and the plots that both show."""
    lead = [ABSTRACT, f"Missing here: {'; '.join(missing)}."] if missing else [ABSTRACT]
    sections, judged = [Section(HEADLINE.format(serial), lead)], []
    for group in tables.grouped(shown):
        corpus, fault = {}, ""
        try:
            corpus = corpus_of(group[0])
        except UserError as error:
            fault = str(error)
        sections.append(results(group, corpus, fault))
        for variant in dict.fromkeys(one.variant for one in group):
            alike = [one for one in group if one.variant == variant]
            sections.append(one_variant(alike, corpus, serial, plots))
        judged.append(judged_corpus(group, corpus, fault))
    n = shown[0].metrics[DEV]["sentences"]
    limits = [COVERED.format(n, *wilson_interval(round(0.8 * n), n)), LOOKS]
    limits += [NANO] if "nano" in map(known_corpus, shown) else []
    sections.append(Section("What these numbers cannot say", limits))
    write_pdf(pdf, sections)
    write_page(page, sections, judged)


def run_report(args: Namespace) -> None:
    """Write plots, PDF and page, and print the table, of the finished runs of ``args.sr_nos``.

    They are all that are on disk, or those of one variant where that is named or trained.
    """
    named = args.mode == "all" or "gpt_variant" in args.given
    which = args.out_dir, args.sr_nos, variant_name(args.gpt_variant) if named else None
    shown, missing, plots = find_runs(*which), missing_runs(*which), Path(args.out_dir, "plots")
    for line in missing:
        print(f"run.py: not in the report: {line}", file=sys.stderr)
    pdf = Path(args.out_dir, f"Report_{args.serial}.pdf")
    page = pdf.with_suffix(".html")
    write_report(pdf, page, shown, args.serial, plots, missing)
    for group in tables.grouped(shown):
        print(tables.result_table(group).to_string(index=False), end="\n\n")
    print(f"report: {pdf}\npage:   {page}\nplots:  {plots}")
