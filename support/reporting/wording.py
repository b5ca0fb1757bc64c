"""What does a report say in words: what was done, and what its numbers cannot say?"""

from support.corpus import DEV
from support.reporting.finished import Experiment
from support.reporting.statistics import wilson_interval
from support.reporting.tables import known_corpus

HEADLINE = "LoRA and a distilled student, sr_no {}"
ABSTRACT = """LoRA fine-tunes a pretrained decoder to judge whether a sentence is acceptable.
DistilRNN, a small recurrent network, is trained with that model as its teacher (distil) and
without (rnn). Beside accuracy stand the majority baseline (the more frequent label for every
sentence) and CoLA's official metric, the Matthews correlation (MCC; 0 for that baseline).
sr_no is the seed."""
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
been trained on them. Each run judged out_of_domain_dev once, with the model kept. Minutes are
wall-clock time of the training epochs, longer where other programs shared the machine. No report
can tell how often settings were changed after a look at an earlier run."""
NANO = """nano is a demonstration: what it shows of its own grammar is not English, and its
out_of_domain_dev was redesigned after looks at it (nano/README.md)."""


def limits(shown: list[Experiment]) -> list[str]:
    """Return the paragraphs on what the numbers cannot say."""
    n = shown[0].metrics[DEV]["sentences"]
    texts = [COVERED.format(n, *wilson_interval(round(0.8 * n), n)), LOOKS]
    if "nano" in map(known_corpus, shown):
        texts.append(NANO)
    return texts
