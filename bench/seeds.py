"""Run `--mode all` for several sr_no and average what the kept models score.

    python bench/seeds.py                          # nano, 22915 22916 22917, and --transfer_size 0
    python bench/seeds.py --gpt_variant gpt2 --sr_nos 1 2 3

Finished runs are not run again. Every option that run.py has and this script lacks is passed on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SPLITS = ("in_domain_dev", "out_of_domain_dev")


def main() -> None:
    """Run, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sr_nos", type=int, nargs="+", default=[22915, 22916, 22917])
    parser.add_argument("--gpt_variant", default="nano")
    parser.add_argument("--out_dir", type=Path, default=PROJECT / "demo")
    args, options = parser.parse_known_args()
    variant = Path(args.gpt_variant).name
    # The student taught by the published recipe alone stands beside, in a folder of its own.
    published = args.out_dir / "transfer_size_0"
    for sr_no in args.sr_nos:
        common = ["--gpt_variant", args.gpt_variant, "--sr_no", str(sr_no), *options]
        run("--mode", "all", "--out_dir", args.out_dir, *common)
        teacher = args.out_dir / "checkpoints" / f"LoRA_{variant}_{sr_no}"
        without = ("--transfer_size", 0, "--teacher", teacher, "--out_dir", published)
        run("--mode", "distil", *without, *common)

    rows = {
        mode: [folder_metrics(args.out_dir, mode, variant, n) for n in args.sr_nos]
        for mode in ("LoRA", "distil", "rnn")
    }
    rows["distil, --transfer_size 0"] = [
        folder_metrics(published, "distil", variant, n) for n in args.sr_nos
    ]
    print(f"\nmeans over sr_no {', '.join(map(str, args.sr_nos))}; each run's in brackets")
    for split in SPLITS:
        one = rows["rnn"][0][split]
        majority = max(one["acceptable"], one["sentences"] - one["acceptable"]) / one["sentences"]
        print(f"\n{split}: {one['sentences']} sentences, majority baseline {majority:.2%}, MCC 0")
        for name, runs in rows.items():
            accuracy = [run[split]["accuracy"] for run in runs]
            mcc = [run[split]["mcc"] for run in runs]
            each = ", ".join(f"{value:.2%}" for value in accuracy)
            print(
                f"  {name:<26} accuracy {statistics.mean(accuracy):.2%} ({each})  "
                f"MCC {statistics.mean(mcc):.3f}"
            )


def run(*arguments: object) -> None:
    """One command of the project; the script ends where it fails."""
    subprocess.run([sys.executable, PROJECT / "run.py", *map(str, arguments)], check=True)


def folder_metrics(out_dir: Path, mode: str, variant: str, sr_no: int) -> dict:
    """The metrics of a finished run."""
    path = out_dir / "checkpoints" / f"{mode}_{variant}_{sr_no}" / "metrics.json"
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
