"""What teaches a student? One setting after another, over several sr_no, and a table.

    python -m bench.ablation --variant smollm2 --data_dir cola_public \\
        --teacher runs/smollm2_cola/checkpoints/LoRA_smollm2_22915
    python -m bench.ablation ... --sr_no 1 --rows recipe "weight 3"

Each is a run.py command with an --out_dir of its own under runs/ablation/; what is finished is
shown, not run again. What the base wrote and the teacher said for one serves the others too. All
columns but `held out` are of in_domain_dev. `teacher` is the correlation of the student's margins
(logit 1 less logit 0) with its teacher's: no label has a part in it. Would another bias help?
`best` is the MCC at the threshold that is best on in_domain_dev itself: no bias, however it is
fitted, can be worth more. `fitted` is the MCC at the threshold that is best on a half of
in_domain_dev, judged on the other, the mean of 200 halves; a student's own threshold is set
otherwise (`distil.choose_threshold`). `held out` is the AUC on the training sentences that were
held out, by which one may choose.
"""

import argparse
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from data_utils import HELD_OUT, hold_out, load_corpus
from predict import load_model
from support import PROJECT
from support.bases import variant_name
from support.corpus import DEV
from support.decisions import margins_of
from support.devices import CPU
from support.reporting.finished import FinishedRun, load_run
from train_utils import predict_logits

# Elman's cell and 40,000 sentences: a run of minutes, where `--recipe hints` takes hours.
ELMAN = "--student_cell rnn --student_layers 1 --held_out 500 --batch_size 128 --lr 0.0005"
RECIPE = (
    f"distil --recipe hints {ELMAN} --transfer_size 40000 --epochs 16 --kd_alpha 0.5 "
    "--embedding_start teacher"
)
# As many steps without a transfer set.
LONG = "--epochs 95 --patience 1000 --monitor mcc --lr_schedule linear --student_dropout 0.3"
ALONE = f"distil {ELMAN} {LONG}"
# The recipe itself, on a part of the sentences of results/, in as many passes.
WRITTEN = "results/smollm2_student/written.txt.gz"
GATED = f"distil --recipe hints --transfer_file {WRITTEN} --transfer_size 50000"
SETTINGS = {  # a name, and the mode with its options
    "labels": f"rnn {ELMAN} {LONG}",
    "logits": ALONE,
    "hints": f"{ALONE} --hint_weight 30 --embedding_start teacher",
    "recipe": RECIPE,
    "20,000": f"{RECIPE} --transfer_size 20000 --epochs 27",  # as many steps, as the next
    "60,000": f"{RECIPE} --transfer_size 60000 --epochs 11",
    "edits": f"{RECIPE} --transfer_source edits",
    "no hints": f"{RECIPE} --hint_weight 0",
    "width 32": f"{RECIPE} --hint_width 32",
    "width 576": f"{RECIPE} --hint_width 576",
    "weight 3": f"{RECIPE} --hint_weight 3",
    "dropout 0": f"{RECIPE} --student_dropout 0",
    "gated 50,000": GATED,
    "hints 256": f"{GATED} --hint_width 256",
    "kd 1": f"{GATED} --kd_alpha 1",
    "kd 0.5": f"{GATED} --kd_alpha 0.5",
    "kd 0.5, hints 256": f"{GATED} --kd_alpha 0.5 --hint_width 256",
    "400,000": f"{GATED} --transfer_size 400000",
    "400,000, before": f"{GATED} --transfer_size 400000 --kd_alpha 0.5 --embedding_start teacher",
}


def main() -> None:
    """Run what is not there yet, and print a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", required=True, help="as --gpt_variant")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--teacher", required=True, help="of every student")
    parser.add_argument("--precision", default="fp32", help="as run.py's")
    parser.add_argument("--sr_no", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=SETTINGS, default=SETTINGS, metavar="SETTING")
    args = parser.parse_args()
    print(
        "| setting | accuracy | MCC | fitted | best | AUC | teacher | held out | minutes |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    taught = load_run(Path(args.teacher))
    for name in args.rows:
        mode, *options = shlex.split(SETTINGS[name])
        out_dir = PROJECT / "runs" / "ablation" / name.replace(" ", "_")
        runs = [train(args, sr_no, mode, options, out_dir) for sr_no in args.sr_no]
        *scores, minutes = figures(runs)
        pairs = [(run.predictions[DEV].margins, taught.predictions[DEV].margins) for run in runs]
        agreements = [np.corrcoef(*pair)[0, 1] for pair in pairs]
        held_out = np.mean([held_out_auc(run, Path(args.data_dir)) for run in runs])
        cells = (name, *scores, f"{np.mean(agreements):.3f}", f"{held_out:.3f}", minutes)
        print(f"| {' | '.join(cells)} |", flush=True)


def train(
    args: argparse.Namespace, sr_no: int, mode: str, options: list[str], out_dir: Path
) -> FinishedRun:
    """A finished run, made now if need be; run.py refuses a folder that holds another."""
    shared, own = out_dir.parent / "transfer", out_dir / "transfer"
    shared.mkdir(parents=True, exist_ok=True)
    out_dir.mkdir(exist_ok=True)
    if not own.exists():
        own.symlink_to(shared)
    words = ["--mode", mode, "--gpt_variant", args.variant, "--data_dir", args.data_dir]
    words += ["--precision", args.precision, "--sr_no", str(sr_no), "--out_dir", str(out_dir)]
    words += options
    words += ["--teacher", args.teacher] if mode == "distil" else []
    # What it prints is no part of the table.
    done = subprocess.run([sys.executable, str(PROJECT / "run.py"), *words], stdout=2)
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    return load_run(out_dir / "checkpoints" / f"{mode}_{variant_name(args.variant)}_{sr_no}")


def figures(runs: list[FinishedRun]) -> list[str]:
    """Means over the runs, on in_domain_dev."""
    rows = []
    for run in runs:
        found = run.predictions[DEV]
        labels, margins = found.labels, found.margins
        accuracy = (found.answers == labels).mean()
        mcc = matthews_corrcoef(labels, found.answers)
        best, _ = best_threshold(labels, margins)
        auc = roc_auc_score(labels, margins)
        minutes = run.metrics["training"]["seconds"] / 60
        rows.append((accuracy, mcc, fitted(labels, margins), best, auc, minutes))
    means = np.mean(rows, axis=0)
    cells = [
        f"{mean:{form}}" for mean, form in zip(means, (".2%", *[".3f"] * 4, ".1f"), strict=True)
    ]
    if len(rows) > 1:
        cells[1] += f" ± {np.std(rows, axis=0, ddof=1)[1]:.3f}"
    return cells


def held_out_auc(run: FinishedRun, data_dir: Path) -> float:
    """The AUC on the sentences that a run held out of training; nan where it held out none."""
    if not run.metrics["arguments"]["held_out"]:
        return math.nan
    margins, labels = held_out_margins(run, data_dir)
    return roc_auc_score(labels, margins)


def held_out_margins(run: FinishedRun, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """The margins of the sentences that a run held out of training, and their labels."""
    model, tokenizer, longest = load_model(run.folder, argparse.Namespace(given=set()))
    corpus = load_corpus(data_dir, tokenizer, longest)
    held_out = hold_out(corpus, run.metrics["arguments"]["held_out"])[HELD_OUT]
    return margins_of(predict_logits(model, held_out, CPU)), held_out.labels.numpy()


def best_threshold(labels: np.ndarray, margins: np.ndarray) -> tuple[float, float]:
    """The best MCC of all thresholds, and the threshold."""
    order = np.argsort(-margins)
    hits = np.cumsum(labels[order])  # acceptable ones among the first 1, 2, ...
    called, n = np.arange(1, len(labels) + 1), len(labels)
    spread = np.sqrt(hits[-1] * (n - hits[-1]) * called * (n - called))
    mccs = (n * hits - called * hits[-1])[:-1] / spread[:-1]
    place = int(np.argmax(mccs))
    return mccs[place], margins[order][place : place + 2].mean()


def fitted(labels: np.ndarray, margins: np.ndarray) -> float:
    """The MCC at a threshold that was fitted on other sentences."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        some, others = np.split(rng.permutation(len(labels)), [len(labels) // 2])
        _, edge = best_threshold(labels[some], margins[some])
        found.append(matthews_corrcoef(labels[others], margins[others] > edge))
    return float(np.mean(found))


if __name__ == "__main__":
    main()
