"""What does a report say in words: what was done, and what its numbers cannot say?"""

from support.options import published
from support.reporting.finished import Series
from support.reporting.statistics import wilson_interval
from support.reporting.tables import known_corpus

HEADLINE = "LoRA and a distilled student, sr_no {}"
ABSTRACT = """LoRA fine-tunes a pretrained decoder to judge whether a sentence is acceptable.
DistilRNN, a small recurrent network, is trained with that model as its teacher (distil) and
without (rnn). Beside accuracy stand the majority baseline (the more frequent label for every
sentence) and CoLA's official metric, the Matthews correlation (MCC; 0 for that baseline).
sr_no is the seed."""
COMPARABLE = """To be read against the published rows, a run must start from the hub's gpt2 or
gpt2-medium (of a folder nobody knows whether it holds their weights), in fp32, with the published
settings. Comparable here: {}. The published are single figures without MCC."""
COVERED = """On {} sentences an accuracy of 80% means anything from {:.1%} to {:.1%}. Intervals and
p of a single run cover the choice of dev sentences, not that of weights and batch order: another
seed can move a result as much. Those of several runs cover the choice of seeds too, both taken as
drawn at random (two crossed random effects, degrees of freedom after Satterthwaite; MCC by its
jackknife pseudo-values). ± is the standard deviation over the sr_no. The p are not corrected for
their number."""
SHARED = """All seeds of {} share {}. No interval and no p covers the choice of these."""
LOOKS = """Where the best epoch on in_domain_dev was kept, the result there is flattered. Where a
threshold was set, and p calibrated, on held-out training sentences, a teacher of this corpus had
been trained on them. Each run judged out_of_domain_dev once, with the model kept. Minutes are
wall-clock time of the training epochs, longer where other programs shared the machine. No report
can tell how often settings were changed after a look at an earlier run."""
OURS = """Of the runs that this project documents, results/README.md tells how often they were."""
NANO = """nano is a demonstration: what it shows of its own grammar is not English, and its
out_of_domain_dev was redesigned after looks at it (nano/README.md)."""


def lead(missing: list[str]) -> list[str]:
    """Return the paragraphs before the results."""
    return [ABSTRACT, f"Missing here: {'; '.join(missing)}."] if missing else [ABSTRACT]


def limits(shown: list[Series]) -> list[str]:
    """Return the paragraphs on what the numbers cannot say.

    What is true of CoLA or of nano's corpus alone is said where a run was trained on it.
    """
    n = shown[0].metrics["in_domain_dev"]["sentences"]
    corpora = {known_corpus(series) for series in shown}
    shared = [(series.name, shared_by_seeds(series)) for series in shown]
    return [
        COVERED.format(n, *wilson_interval(round(0.8 * n), n)),
        *[SHARED.format(name, ", ".join(parts)) for name, parts in shared if parts],
        LOOKS,
        *([OURS] if corpora & {"CoLA", "nano"} else []),
        *([NANO] if "nano" in corpora else []),
    ]


def shared_by_seeds(series: Series) -> list[str]:
    """Return what all runs of several seeds have in common by chance, beside the corpus."""
    options = published(series.mode) | series.metrics["arguments"]
    teachers = [run.metrics.get("teacher") or {} for run in series.runs]
    known = {str(t.get("fingerprint") or t.get("folder")) for t in teachers if t}
    written = options.get("transfer_size") and options["transfer_source"] != "edits"
    held_out = options.get("held_out")
    parts = {"one held-out set": held_out, "one set of written sentences": written}
    parts["one teacher"] = len(known) == 1
    return [part for part, true in parts.items() if true] if len(series.runs) > 1 else []
