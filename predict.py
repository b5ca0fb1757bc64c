"""Saved models at work: gen continues a prompt, predict judges sentences, export hands them on."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from data_utils import UNLABELLED, tokenize
from student import load_student
from support import PROJECT
from support.bases import find_base, load_auto_tokenizer, load_language_model, load_tokenizer
from support.checkpoints.students import kind_of, read_decision, read_max_length
from support.corpus import DEV, SPLITS, read_split
from support.decisions import SOFTMAX, Decision, margins_of
from support.devices import choose_device, keep_freed_memory
from support.errors import UserError
from support.files import read_bytes
from support.options import RULES
from support.progress import progress_bar
from support.reporting import describe, measure, read_metrics, summary
from support.reporting.metrics import COUNTS
from support.runs import run_folder
from support.sentences import parse_sentences
from train_utils import predict_logits

MODELS = PROJECT / "results" / "models"
SHIPPED = {"student": "distil_smollm2_22919", "smollm2": "LoRA_smollm2_22915"}


def run_gen(args: Namespace) -> None:
    """Continue the prompt, printing the text as it is made; the same text for the same sr_no.

    An empty prompt starts from the end-of-text token, which opens a document in GPT-2's training.
    """
    from transformers import GenerationConfig, TextStreamer

    device = choose_device(args.device, args.precision)
    base = find_base(args.gpt_variant)
    tokenizer = load_auto_tokenizer(base.folder)
    text = args.prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    ids = tokenizer(text, verbose=False)["input_ids"]
    opening = tokenizer.bos_token_id
    opening = tokenizer.eos_token_id if opening is None else opening
    if not ids and opening is None:
        raise UserError(f"--prompt: {args.gpt_variant} has no token that opens a text; give one")
    prompt = torch.tensor([ids or [opening]])  # (1, tokens)
    room = base.max_length - prompt.shape[1]
    if args.max_new_tokens > room:
        raise UserError(
            f"--max_new_tokens {args.max_new_tokens}: after the prompt's {prompt.shape[1]} tokens "
            f"the model has room for {max(room, 0)}; ask for fewer or shorten the prompt"
        )
    model = device.place(load_language_model(base.folder))
    # The options say how; a base's own settings may ask for beams, or for code from the hub.
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    sampling = {}
    if sampled := args.temperature > 1e-6:  # the softmax of less has one token, or overflows
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    torch.manual_seed(args.sr_no)
    for number in range(1, args.num_samples + 1):
        if args.num_samples > 1:
            print(f"--- {number} of {args.num_samples}")
        with device.autocast():
            model.generate(
                prompt.to(device.torch),
                attention_mask=torch.ones_like(prompt).to(device.torch),
                max_new_tokens=args.max_new_tokens,
                do_sample=sampled,
                pad_token_id=tokenizer.eos_token_id,
                streamer=TextStreamer(tokenizer, skip_special_tokens=True),
                **sampling,
            )


# ---------------------------------------------------------------------------------------------
# predict


def run_predict(args: Namespace) -> None:
    """Judge sentences with saved teachers and students: a table, or one JSON object a line.

    Labelled sentences, in CoLA's layout, are scored as well.
    """
    device = choose_device(args.device, args.precision)
    sentences, labels, source, lines = read_sentences(args)
    folders = chosen_checkpoints(args)
    decisions = {name: chosen_decision(name, folder, args) for name, folder in folders.items()}
    logits = {}  # (sentences, 2), by the name of the model
    keep_freed_memory()
    for name, folder in folders.items():
        model, tokenizer, max_length = load_model(folder, args)
        split = tokenize(tokenizer, sentences, labels, max_length, source, lines)
        if unknown := words_unknown_to_nano(tokenizer, sentences):
            note = f"nano knows its own small lexicon alone, and not {unknown[0]!r}"
            print(f"note: {note}: what it says of other English means nothing", file=sys.stderr)
        with progress_bar("judging sentence", len(split)) as bar:
            logits[name] = predict_logits(device.place(model), split, device, bar)
    for note in filter(None, map(threshold_note, decisions, decisions.values())):
        print(note, file=sys.stderr)
    judged = {name: judgements(logits[name], decisions[name]) for name in logits}
    for line in json_lines(sentences, judged) if args.json else table(sentences, judged):
        print(line)
    if UNLABELLED in labels:
        return
    for name in logits:
        metrics = measure(logits[name], split.labels, decisions[name])
        heading = f"{name}:\n" if len(logits) > 1 else ""
        scores = f"{heading}{describe(metrics)}\n{confusion(metrics)}"
        print(scores, file=sys.stderr if args.json else sys.stdout)


def chosen_checkpoints(args: Namespace) -> dict[str, Path]:
    """Return the folders of the models that the options name, or of the default one, by name."""
    given = args.checkpoint or [default_checkpoint(args)]
    short = len({path.name for path in given}) == len(given)
    folders = {}
    for path in given:
        known = str(path) in SHIPPED and not path.exists()
        folder = MODELS / SHIPPED[str(path)] if known else path
        kind_of(folder)  # refused before another has judged a long file
        folders[path.name if short else str(path)] = folder
    if len(folders) < len(given):
        raise UserError("--checkpoint: one is given twice")
    return folders


def default_checkpoint(args: Namespace) -> Path:
    """Return one's own LoRA run; the student that ships where there is none and none is named."""
    own = run_folder(args, "LoRA")
    if own.exists() or args.mode != "predict" or args.given & {"gpt_variant", "sr_no", "out_dir"}:
        return own
    student, teacher = (summary(read_metrics(MODELS / SHIPPED[name])[DEV]) for name in SHIPPED)
    note = f"note: the student that ships, taught by smollm2 on CoLA; accuracy on {DEV} {student}"
    print(f"{note}; of its teacher (--checkpoint smollm2) {teacher}", file=sys.stderr)
    return MODELS / SHIPPED["student"]


def chosen_decision(name: str, folder: Path, args: Namespace) -> Decision:
    """Return where a model decides: by --threshold, or as it was set in training."""
    decision = read_decision(folder) if kind_of(folder) == "student" else SOFTMAX
    if "threshold" not in args.given:
        return decision
    if not decision.thresholds:
        raise UserError(
            f"--threshold {args.threshold}: {name} decides at p = 0.5 alone; only a student that "
            "was trained with --held_out has two thresholds; leave the option out"
        )
    return decision._replace(rule=args.threshold)


def load_model(folder: Path, args: Namespace) -> tuple[nn.Module, Tokenizer, int]:
    """Load a checkpoint: the model, its tokenizer, and its longest sentence in tokens.

    The base of an adapter is the one that the command line names, or the adapter itself.
    """
    if kind_of(folder) == "student":
        return load_student(folder), load_tokenizer(folder), read_max_length(folder)
    from finetune import load_teacher  # transformers takes seconds, which a student does not need

    teacher = load_teacher(folder, args.gpt_variant if "gpt_variant" in args.given else None)
    return teacher.model, teacher.base.tokenizer, teacher.base.max_length


def read_sentences(args: Namespace) -> tuple[list[str], list[int], str, list[int]]:
    """Return the sentences to judge, their labels if any, what they are from, and their lines."""
    if args.sentences and args.input:
        raise UserError("--input: sentences are given on the command line too; choose one")
    if args.sentences:
        content = "\n".join(args.sentences).encode("utf-8", "surrogateescape")
        source = "the command line"
    else:
        if not args.input and sys.stdin.isatty():
            print("One sentence a line; Ctrl-D ends the list.", file=sys.stderr)
        source = str(args.input or "standard input")
        content = read_bytes(args.input) if args.input else sys.stdin.buffer.read()
    sentences, labels, lines = parse_sentences(content, source)
    if blank := lines[-1] - len(lines):
        what = "blank line" if blank == 1 else "blank lines"
        print(f"{source}: {blank} {what} passed over", file=sys.stderr)
    return sentences, labels or [UNLABELLED] * len(sentences), source, lines


def table(sentences: list[str], judged: dict[str, list[dict]]) -> Iterator[str]:
    """Yield the lines of a table: one model's judgements, or those of several side by side."""
    words = ("unacceptable", "acceptable")
    if len(judged) == 1:
        heads, form = ["p(acceptable)  judgement   "], "{:>13.3f}  {:<12}"
    else:
        heads, form = [f"{name:<18}" for name in judged], "{:.3f} {:<12}"
    yield "  ".join([*heads, "sentence"])
    for sentence, *row in zip(sentences, *judged.values(), strict=True):
        cells = [form.format(answer["p_acceptable"], words[answer["label"]]) for answer in row]
        yield "  ".join([*map(str.ljust, cells, map(len, heads)), sentence])


def json_lines(sentences: list[str], judged: dict[str, list[dict]]) -> Iterator[str]:
    """Yield a JSON object for each sentence, of several models with an entry each."""
    for sentence, *row in zip(sentences, *judged.values(), strict=True):
        answer = {"models": dict(zip(judged, row, strict=True))} if len(row) > 1 else row[0]
        yield json.dumps({"sentence": sentence, **answer}, ensure_ascii=False)


def judgements(logits: Tensor, decision: Decision) -> list[dict]:
    """Return what a model's logits (sentences, 2) say of each sentence, as --json has it."""
    margins = margins_of(logits)
    columns = decision.answers(margins), decision.p_acceptable(margins), logits
    names = ("label", "p_acceptable", "logits")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def threshold_note(name: str, decision: Decision) -> str:
    """Return from which p on a model says "acceptable"; nothing where that is above 0.5."""
    if decision.rule in (None, "accuracy"):
        return ""
    ps = {rule: decision.p_acceptable(decision.thresholds[rule]) for rule in RULES}
    return (
        f"note: {name} calls a sentence acceptable from p = {ps[decision.rule]:.2f} on "
        f"({decision.rule}); with --threshold accuracy from {ps['accuracy']:.2f}"
    )


def confusion(metrics: dict) -> str:
    """Return the four counts of right and wrong answers in a line."""
    n, acceptable, predicted, correct = (metrics[name] for name in COUNTS)
    right = (correct + acceptable + predicted - n) // 2  # of the acceptable ones
    return (
        f"acceptable: {right} judged right, {acceptable - right} wrong; "
        f"unacceptable: {correct - right} judged right, {predicted - right} wrong"
    )


def words_unknown_to_nano(tokenizer: Tokenizer, sentences: list[str]) -> list[str]:
    """Return the words that are not in nano's lexicon, where the tokenizer is nano's."""
    nano = PROJECT / "nano"
    if tokenizer.to_str() != load_tokenizer(nano).to_str():
        return []
    known = [read_split(nano / "corpus" / "raw" / f"{split}.tsv")[0] for split in SPLITS]
    return sorted(words_of(sentences) - words_of(chain(*known)))


def words_of(sentences: Iterable[str]) -> set[str]:
    """Return the words in lower case, without the marks at a sentence's end."""
    return {word.strip(".,?!").lower() for sentence in sentences for word in sentence.split()}


# ---------------------------------------------------------------------------------------------
# export


def run_export(args: Namespace) -> None:
    """Write a checkpoint to ``<out_dir>/exports/``, in a form that needs nothing of ours."""
    from support.checkpoints.export import save_merged, save_onnx

    (folder,) = chosen_checkpoints(args).values()
    target = args.out_dir / "exports" / folder.resolve().name
    if kind_of(folder) == "adapter":
        from finetune import load_teacher

        teacher = load_teacher(folder, args.gpt_variant if "gpt_variant" in args.given else None)
        save_merged(teacher.model, teacher.base, target)
        print(f"{target}: transformers.AutoModelForSequenceClassification.from_pretrained loads it")
    else:
        student, tokenizer = load_student(folder), load_tokenizer(folder)
        save_onnx(student, tokenizer, folder, target, read_decision(folder))
        print(
            f"{target / 'student.onnx'}: inputs input_ids (batch, time) and lengths (batch,), int64"
        )
