"""Kill `--mode all` on nano at random moments, start it again, and compare with a run left alone.

    python -m bench.kills --kills 200 --seed 1

SIGKILL falls anywhere: while importing, training, evaluating or saving, while the report is
written. Two kills of five are aimed at the base that writes sentences and at the teacher that
reads them. A run is started again until it ends by itself; then every file must be that of the
undisturbed run, bit for bit, but for what depends on the clock. Prints where the kills fell and
each difference, and exits with status 1 if there is any.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import pandas as pd
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
WRITES, READS, TRAINS = "a base wrote", "a teacher read", "a model trained"
OTHER = "something else was done"
AIMS = (OTHER, OTHER, OTHER, WRITES, READS)  # one is drawn for each kill
# What a process runs. Saves come every 0.2 s instead of every 300 s, so that kills fall into many
# of them. A file beside the folder tells what is aimed at, while it is done.
START = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PROJECT)!r})
import run, support.runs.resumption, support.teaching, train_utils
from support.teaching import answers, written
support.runs.resumption.SAVE_EVERY = 0.2
answers.CHUNK, written.SAVE_EVERY = 5000, 1
mark = Path(str(Path.cwd()) + ".phase")
def marked(function, phase):
    def call(*args, **kwargs):
        mark.write_text(phase)
        try:
            return function(*args, **kwargs)
        finally:
            mark.unlink()
    return call
written.write = marked(written.write, {WRITES!r})
support.teaching.teacher_answers = marked(support.teaching.teacher_answers, {READS!r})
train_utils.train = marked(train_utils.train, {TRAINS!r})
sys.exit(run.main(sys.argv[1:]))
"""
OPTIONS = shlex.split(
    "--mode all --gpt_variant nano --epochs 3 --batch_size 64 --lora_dropout 0.1 --max_steps 70 "
    "--transfer_size 1000 --transfer_source everyday --hint_weight 3 --lr_schedule linear "
    "--embedding_start mapped"
)


def main() -> int:
    """Return 1 if any file differed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differences, fell = compare_killed(Path(folder), args.kills, args.seed)
    for difference in differences:
        print(difference)
    where = ", ".join(f"{fell[phase]} while {phase}" for phase in (WRITES, READS, TRAINS, OTHER))
    print(f"{args.kills} kills ({where}), seed {args.seed}: {len(differences)} differences")
    return int(bool(differences))


def compare_killed(
    folder: Path, kills: int, seed: int, options: list[str] = OPTIONS, aims: Sequence[str] = AIMS
) -> tuple[list[str], Counter[str]]:
    """Kill runs ``kills`` times in all; return what differed from the run left alone.

    What each kill is aimed at is drawn from ``aims``. Where they fell is returned, too.
    """
    rng, fell = random.Random(seed), Counter()
    alone = folder / "alone"
    assert start(alone, options).wait() == 0, (alone / "log").read_text()
    differences, done, trial = [], 0, 0
    with tqdm(desc="kills", total=kills, disable=None) as bar:
        while done < kills:
            killed = folder / f"killed_{trial}"
            trial += 1
            process = start(killed, options)
            while done < kills and wait(process, killed, rng.choice(aims), rng):
                phase = phase_of(killed)
                process.kill()
                process.wait()
                done += 1
                bar.update()
                fell[phase] += 1
                process = start(killed, options)
            assert process.wait() == 0, (killed / "log").read_text()
            differences += compare(alone, killed)
    return differences, fell


def wait(process: subprocess.Popen, folder: Path, aim: str, rng: random.Random) -> bool:
    """Wait for the moment of a kill; return whether the process still runs then."""
    seconds = rng.uniform(0, 10) if aim == OTHER else rng.uniform(0, 1)
    while aim != OTHER and process.poll() is None and phase_of(folder) != aim:
        time.sleep(0.01)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is None


def phase_of(folder: Path) -> str:
    """Return what a run in the folder is at."""
    with suppress(FileNotFoundError):
        return folder.with_name(f"{folder.name}.phase").read_text() or OTHER
    return OTHER


def start(folder: Path, options: list[str]) -> subprocess.Popen:
    """Start the command in ``folder``; what it prints goes to the file ``log``."""
    folder.mkdir(exist_ok=True)
    folder.with_name(f"{folder.name}.phase").unlink(missing_ok=True)  # of a killed process
    with open(folder / "log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", START, *options], cwd=folder, stdout=log, stderr=log
        )


def compare(alone: Path, killed: Path) -> list[str]:
    """Return what two folders do not share, a line each file."""
    trees = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (alone, killed)
    ]
    differences = [f"{killed.name}: {path} is in one folder only" for path in trees[0] ^ trees[1]]
    for path in sorted(trees[0] & trees[1] - {Path("log")}):
        lines = zip_longest(content(alone / path), content(killed / path))
        if pair := next((pair for pair in lines if pair[0] != pair[1]), None):
            differences.append(f"{killed.name}: {path} differs: {pair[0]!r:.160} {pair[1]!r:.160}")
    return differences


def content(path: Path) -> list:
    """Return a file's lines, without what depends on the clock."""
    if path.name in ("history.csv", "steps.csv"):
        timed = ["seconds", "sentences_per_second"]
        return pd.read_csv(path, dtype=str).drop(columns=timed, errors="ignore").to_numpy().tolist()
    if path.name == "metrics.json":
        metrics = json.loads(path.read_text())
        metrics["training"].pop("seconds")
        return json.dumps(metrics, indent=1).splitlines()
    return path.read_bytes().split(b"\n")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
