"""Would a threshold that is set on everyday sentences too serve a student on both kinds?

    python -m bench.thresholds results/models/distil_smollm2_22915 cola_public

A student's balanced threshold is set on held-out sentences of CoLA (`distil.linear_discriminant`).
Here it is set on everyday ones as well: on the page that a base continues, of which no student has
read a sentence (support/teaching/everyday.txt), and on the same sentences with a mistake each.
"both" is the middle of the two. "right" is of the 200 pairs (bench/minimal_pairs.py).
"""

import argparse
from pathlib import Path

import numpy as np

from bench import markdown
from bench.ablation import held_out_margins
from bench.minimal_pairs import judged, margins_by, pair_margins
from distil import linear_discriminant
from support.reporting.finished import DEV_SETS, load_run
from support.reporting.metrics import matthews_corrcoef
from support.teaching.edits import with_mistakes
from support.teaching.written import EVERYDAY


def main() -> None:
    """Print a row for each place to set it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data_dir", type=Path)
    args = parser.parse_args()
    run, page = load_run(args.run), EVERYDAY.read_text().splitlines()
    changed = with_mistakes(page, set())
    labels = np.repeat([1, 0], [len(page), len(changed)])
    everyday = linear_discriminant(margins_by(args.run, [*page, *changed]), labels, "balanced")
    cola = linear_discriminant(*held_out_margins(run, args.data_dir), "balanced")
    edges = {"CoLA": cola.threshold, "everyday sentences": everyday.threshold}
    edges["both"] = sum(edges.values()) / 2
    pairs = pair_margins(args.run)
    rows = [("set on", "margin", *(f"{split}, MCC" for split in DEV_SETS), "everyday, right")]
    for name, edge in edges.items():
        found = (run.predictions[split] for split in DEV_SETS)
        mccs = [f"{matthews_corrcoef(one.labels, one.margins > edge):.3f}" for one in found]
        decision = cola._replace(thresholds={"balanced": edge})
        rows.append((name, f"{edge:+.2f}", *mccs, f"{judged(pairs, decision)['right'].mean():.1%}"))
    print(markdown(rows))


if __name__ == "__main__":
    main()
