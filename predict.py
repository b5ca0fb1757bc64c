"""Saved models at work: gen continues a prompt, predict judges sentences, export hands them on."""

import json
import math
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from data_utils import UNLABELLED, Split, tokenize
from student import load_student
from support.bases import find_base, load_auto_tokenizer, load_language_model, load_tokenizer
from support.bases.tokens import NANO
from support.checkpoints.students import (
    MODELS,
    SHIPPED,
    checkpoint_folder,
    kind_of,
    read_decision,
    read_max_length,
    read_metrics_if_any,
)
from support.corpus import DEV, TRAIN
from support.decisions import SOFTMAX, Decision, margins_of
from support.devices import choose_device, keep_freed_memory
from support.errors import UserError
from support.files import read_bytes
from support.options import RULES
from support.progress import progress_bar
from support.reporting import describe, measure, read_metrics
from support.reporting.metrics import COUNTS, classes_of
from support.runs import run_folder
from support.sentences import (
    KNOWN,
    Columns,
    Row,
    Table,
    number_labels,
    plain,
    read_lines,
    read_sentences,
    text_of,
)
from train_utils import predict_logits

MANY = 8  # times the training sentences' mean length, beyond which a sentence is unlike them
NANO_NOTE = "nano knows its own small lexicon alone: what it says of other English means nothing"
COMMAND_LINE, STANDARD_INPUT = "the command line", "standard input"
SEVERAL = re.compile(r"[^\W\d_A-Z]{2}[.?!][\"')\]]*\s+[A-Z]")  # not after "Dr." or "J."


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

    Labelled sentences are scored as well.
    """
    device = choose_device(args.device, args.precision)
    table = sentences_to_judge(args)
    sentences, lines = [row.sentence for row in table.rows], [row.line for row in table.rows]
    folders = chosen_checkpoints(args)
    decisions = {name: chosen_decision(name, folder, args) for name, folder in folders.items()}
    metrics = {name: read_metrics_if_any(folder) for name, folder in folders.items()}
    classes = {name: classes_of(found) for name, found in metrics.items()}
    gold = gold_labels(table, args.positive, list(classes.values()))
    labels = gold or [UNLABELLED] * len(sentences)
    notes, logits = [several_note(table)], {}  # logits (sentences, 2), by the name of the model
    keep_freed_memory()
    for name, folder in folders.items():
        model, tokenizer, max_length = load_model(folder, args)
        split = tokenize(tokenizer, sentences, labels, max_length, table.name, lines)
        notes += [NANO_NOTE * (tokenizer.to_str() == load_tokenizer(NANO).to_str())]
        notes += [length_note(split, lines, metrics[name])]
        notes += [threshold_note(name, decisions[name], classes[name])]
        with progress_bar("judging sentence", len(split)) as bar:
            logits[name] = predict_logits(device.place(model), split, device, bar)
    for note in dict.fromkeys(filter(None, notes)):
        print(f"note: {note}", file=sys.stderr)
    judged = {name: judgements(logits[name], decisions[name]) for name in logits}
    rows = zip(sentences, *judged.values(), strict=True)
    for line in json_lines(rows, list(judged), gold) if args.json else table_lines(rows, classes):
        print(line)
    for name in logits if gold else ():
        scored = measure(logits[name], split.labels, decisions[name])
        heading = f"{name}:\n" if len(logits) > 1 else ""
        scores = f"{heading}{describe(scored, classes[name])}\n{confusion(scored, classes[name])}"
        print(scores, file=sys.stderr if args.json else sys.stdout)


def gold_labels(table: Table, positive: str | None, known: list[tuple[str, ...]]) -> list[int]:
    """Return the labels of a table's sentences, if any, and tell what it was understood to be."""
    names: Sequence[str] = ()
    rows: list[Row] = []
    if table.label_column:
        if len(set(known)) > 1:
            raise UserError(f"{table.name}: labels, and models of other classes; score one by one")
        if positive and plain(positive) == plain(known[0][0]):
            raise UserError(f"--positive {positive}: the model was trained with it as class 0")
        names, (rows,) = number_labels([table], positive, [*known, *KNOWN])
    if table.layout or table.name not in (COMMAND_LINE, STANDARD_INPUT):
        print(table.understood(names), file=sys.stderr)
    return [row.label for row in rows]


def chosen_checkpoints(args: Namespace) -> dict[str, Path]:
    """Return the folders that the options name, or the default one, by name."""
    given = args.checkpoint or [default_checkpoint(args)]
    names = [os.path.basename(os.path.abspath(path)) for path in given]  # also of "."
    if len(set(names)) < len(names):
        names = [str(path) for path in given]
    folders = dict(zip(names, map(checkpoint_folder, given), strict=True))
    kinds = {kind_of(folder) for folder in folders.values()}  # before one judges a long file
    if len(folders) < len(given):
        raise UserError("--checkpoint: one is given twice")
    if kinds == {"student"} and args.checkpoint and "gpt_variant" in args.given:
        raise UserError("--gpt_variant means nothing to a student, which is complete; leave it out")
    return folders


def default_checkpoint(args: Namespace) -> Path:
    """Return one's own LoRA run; the student that ships where there is none and none is named."""
    own = run_folder(args, "LoRA")
    if own.exists() or args.mode != "predict" or args.given & {"gpt_variant", "sr_no", "out_dir"}:
        return own
    scores = (read_metrics(MODELS / SHIPPED[name])[DEV] for name in SHIPPED)
    wrong = [f"one in {1 / (1 - s['accuracy']):.0f} (MCC {s['mcc']:.3f})" for s in scores]
    note = "note: the student that ships. Of its answers on CoLA's {} {} is wrong, of its teacher's"
    print(f"{note}, --checkpoint smollm2, {{}}".format(DEV, *wrong), file=sys.stderr)
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


def sentences_to_judge(args: Namespace) -> Table:
    """Return the sentences of the command line, of a file, or of standard input."""
    columns = Columns(args.text_column, args.label_column, args.positive)
    if args.sentences and (args.input or any(columns)):
        raise UserError(
            "sentences on the command line, and --input or the columns of a table; choose one"
        )
    if args.sentences:
        name = COMMAND_LINE
        content = "".join(f"{sentence}\n" for sentence in args.sentences)
        table = text_of(read_lines(content.encode("utf-8", "surrogateescape"), name), name)
    else:
        if not args.input and sys.stdin.isatty():
            print("One sentence a line; Ctrl-D ends the list.", file=sys.stderr)
        name = str(args.input or STANDARD_INPUT)
        content = read_bytes(args.input) if args.input else sys.stdin.buffer.read()
        table = read_sentences(content, name, columns)
    if table.blank:
        what = "blank line" if table.blank == 1 else "blank lines"
        print(f"{table.name}: {table.blank} {what} passed over", file=sys.stderr)
    return table


def table_lines(
    rows: Iterable[tuple[str | dict, ...]], classes: dict[str, tuple[str, ...]]
) -> Iterator[str]:
    """Yield a table of sentences, each with the answer of one model, or with those of several."""
    width = max(12, *(len(name) for names in classes.values() for name in names))
    heads, form = [f"{name:<{width + 6}}" for name in classes], "{:.3f} {}"
    if len(classes) == 1:
        (names,) = classes.values()
        p = f"p({names[1]})"
        heads, form = [f"{p:>13}  {'judgement':<{width}}"], f"{{:>{max(13, len(p))}.3f}}  {{}}"
    yield "  ".join([*heads, "sentence"])
    for sentence, *answers in rows:
        each = zip(answers, classes.values(), strict=True)
        cells = [form.format(a["p_acceptable"], names[a["label"]]) for a, names in each]
        yield "  ".join([*map(str.ljust, cells, map(len, heads)), sentence])


def json_lines(
    rows: Iterable[tuple[str | dict, ...]], names: list[str], gold: list[int]
) -> Iterator[str]:
    """Yield a JSON object for each sentence, of several models with an entry each.

    "label" is a model's answer, "gold" the file's.
    """
    for number, (sentence, *answers) in enumerate(rows):
        answer = {"models": dict(zip(names, answers, strict=True))}
        known = {"gold": gold[number]} if gold else {}
        answer = answers[0] if len(answers) == 1 else answer
        yield json.dumps({"sentence": sentence, **answer, **known}, ensure_ascii=False)


def judgements(logits: Tensor, decision: Decision) -> list[dict]:
    """Return what a model's logits (sentences, 2) say of each sentence, as --json has it."""
    margins = margins_of(logits)
    columns = decision.answers(margins), decision.p_acceptable(margins), logits
    names = ("label", "p_acceptable", "logits")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def threshold_note(name: str, decision: Decision, classes: Sequence[str]) -> str:
    """Return from which p on a model says "acceptable", where that is not from 0.5 on."""
    if decision.rule in (None, "accuracy"):
        return ""
    ps = {rule: decision.p_acceptable(decision.thresholds[rule]) for rule in RULES}
    return (
        f"{name} calls a sentence {classes[1]} from p = {ps[decision.rule]:.3f} on "
        f"({decision.rule}); with --threshold accuracy from {ps['accuracy']:.3f}"
    )


def several_note(table: Table) -> str:
    """Return a remark where a line has more than one sentence."""
    lines = [row.line for row in table.rows if SEVERAL.search(row.sentence)]
    return (
        f"{table.name}, line {lines[0]}: perhaps several sentences, judged as one" if lines else ""
    )


def length_note(split: Split, lines: list[int], metrics: dict) -> str:
    """Return a remark where a sentence is far longer than those that a model was trained on."""
    longest, facts = int(split.seqlens.argmax()), metrics["data"].get(TRAIN, {})
    usual = (facts.get("tokens") or math.inf) / facts.get("sentences", 1)
    if split.seqlens[longest] <= MANY * usual:
        return ""
    return (
        f"line {lines[longest]} has {split.seqlens[longest]} tokens, and a training sentence about "
        f"{usual:.0f}: what a model says of such a line may mean little"
    )


def confusion(metrics: dict, classes: Sequence[str]) -> str:
    """Return the four counts of right and wrong answers in a line."""
    n, acceptable, predicted, correct = (metrics[name] for name in COUNTS)
    right = (correct + acceptable + predicted - n) // 2  # of the acceptable ones
    return (
        f"{classes[1]}: {right} judged right, {acceptable - right} wrong; "
        f"{classes[0]}: {correct - right} judged right, {predicted - right} wrong"
    )


# ---------------------------------------------------------------------------------------------
# export


def run_export(args: Namespace) -> None:
    """Write a checkpoint to ``<out_dir>/exports/``, in a form that needs nothing of ours."""
    from support.checkpoints.export import save_merged, save_onnx

    (folder,) = chosen_checkpoints(args).values()
    target = args.out_dir / "exports" / folder.resolve().name
    classes = classes_of(read_metrics_if_any(folder))
    if kind_of(folder) == "adapter":
        from finetune import load_teacher

        teacher = load_teacher(folder, args.gpt_variant if "gpt_variant" in args.given else None)
        save_merged(teacher.model, teacher.base, target, classes)
        print(f"{target}: transformers.AutoModelForSequenceClassification.from_pretrained loads it")
    else:
        student, tokenizer = load_student(folder), load_tokenizer(folder)
        save_onnx(student, tokenizer, folder, target, read_decision(folder), classes)
        print(
            f"{target / 'student.onnx'}: inputs input_ids (batch, time) and lengths (batch,), int64"
        )
