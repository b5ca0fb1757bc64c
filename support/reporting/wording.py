"""What does a report say in words: what was done, and what its numbers cannot say?"""

from support.reporting.finished import Series
from support.reporting.statistics import wilson_interval

HEADLINE = "LoRA and a distilled student, sr_no {}"
ABSTRACT = """LoRA fine-tunes a pretrained decoder to judge whether a sentence is good English.
DistilRNN, a small recurrent network, is trained with that model as its teacher (distil) and
without (rnn). Beside accuracy stand the majority baseline (the more frequent label for every
sentence) and CoLA's official metric, the Matthews correlation (MCC; 0 for that baseline)."""
COMPARABLE = """To be read against the published rows, a run must start from gpt2 or gpt2-medium,
with the published settings. Comparable here: {}. The published are single figures without MCC."""
COVERED = """On {} sentences an accuracy of 80% means anything from {:.1%} to {:.1%}. Intervals and
p of a single run cover the choice of dev sentences, not that of weights and batch order: another
seed can move a result as much. Those of several runs cover the choice of seeds too, both taken as
drawn at random (two crossed random effects, degrees of freedom after Satterthwaite; MCC by its
jackknife pseudo-values), but not that of a teacher which students share. ± is the standard
deviation over the sr_no. The p are not corrected for their number."""
LOOKS = """Where the best epoch on in_domain_dev was kept, the result there is flattered. Where a
threshold was set, and p calibrated, on held-out training sentences, a teacher of this corpus had
been trained on them. Each run judged out_of_domain_dev once, with the model kept. No report can
tell how often settings were changed after a look at an earlier run; results/README.md tells it of
this project's. Minutes are wall-clock time of the training epochs, longer where other programs
shared the machine."""
NANO = """nano is a demonstration: what it shows of its own grammar is not English, and its
out_of_domain_dev was redesigned after looks at it (nano/README.md)."""


def lead(missing: list[str]) -> list[str]:
    """Return the paragraphs before the results."""
    return [ABSTRACT, f"Missing here: {'; '.join(missing)}."] if missing else [ABSTRACT]


def limits(shown: list[Series]) -> list[str]:
    """Return the paragraphs on what the numbers cannot say."""
    n = shown[0].metrics["in_domain_dev"]["sentences"]
    covered = COVERED.format(n, *wilson_interval(round(0.8 * n), n))
    return [covered, LOOKS, *[NANO for series in shown if series.variant == "nano"][:1]]
