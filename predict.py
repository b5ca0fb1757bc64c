"""gen, predict and export: saved models at work."""

import json
import sys
from argparse import Namespace

import torch
from transformers import GPT2LMHeadModel, TextStreamer

from data_utils import UNLABELLED, UserError, read_bytes, tokenize
from distil import load_checkpoint, save_onnx
from lora import CONFIG as ADAPTER_CONFIG
from lora import load_adapter, save_merged
from model import load_gpt2, load_tokenizer, variant_folder
from train_utils import choose_compute, keep_freed_memory, predict_logits, run_folder, write_files

# ---------------------------------------------------------------------------------------------
# gen


def run_gen(args: Namespace) -> None:
    """Continue the prompt, printing the text as it is made; the same text for the same sr_no.

    An empty prompt starts from the end-of-text token, which opens a document in GPT-2's training.

    Raises:
        UserError: where prompt and continuation do not fit the model's positions.
    """
    compute = choose_compute(args.device, args.precision)
    folder = variant_folder(args.gpt_variant)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(args.prompt, add_special_tokens=False, verbose=False)["input_ids"]
    prompt = torch.tensor([ids or [tokenizer.bos_token_id]])  # (1, tokens)
    model = load_gpt2(folder, GPT2LMHeadModel).to(compute.device)
    room = model.config.n_positions - prompt.shape[1]
    if args.max_new_tokens > room:
        raise UserError(
            f"--max_new_tokens {args.max_new_tokens}: after the prompt's {prompt.shape[1]} tokens "
            f"the model has room for {max(room, 0)}; ask for fewer or shorten the prompt"
        )
    sampling = {}
    if sampled := args.temperature > 1e-6:  # the softmax of less has one token, or overflows
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    torch.manual_seed(args.sr_no)
    for number in range(1, args.num_samples + 1):
        if args.num_samples > 1:
            print(f"--- {number} of {args.num_samples}")
        with compute.autocast():
            model.generate(
                prompt.to(compute.device),
                attention_mask=torch.ones_like(prompt).to(compute.device),
                max_new_tokens=args.max_new_tokens,
                do_sample=sampled,
                pad_token_id=tokenizer.eos_token_id,
                streamer=TextStreamer(tokenizer, skip_special_tokens=True),
                **sampling,
            )


# ---------------------------------------------------------------------------------------------
# predict


def run_predict(args: Namespace) -> None:
    """Judge sentences with a saved teacher or student: a table, or one JSON object a line."""
    compute = choose_compute(args.device, args.precision)
    sentences, source = read_sentences(args)
    folder = args.checkpoint or run_folder(args, "LoRA")
    variant = args.gpt_variant if "gpt_variant" in args.given else None
    model, tokenizer, positions = load_checkpoint(folder, variant)
    split = tokenize(tokenizer, sentences, [UNLABELLED] * len(sentences), positions, source)
    keep_freed_memory()
    logits = predict_logits(model.to(compute.device), split, compute, "judging")
    answers, probabilities = logits.argmax(dim=1).tolist(), logits.softmax(dim=1)[:, 1].tolist()
    rows = zip(sentences, answers, probabilities, logits.tolist(), strict=True)
    if args.json:
        for row in rows:
            named = dict(zip(("sentence", "label", "p_acceptable", "logits"), row, strict=True))
            print(json.dumps(named, ensure_ascii=False))
        return
    print("p(acceptable)  judgement     sentence")
    for sentence, label, p_acceptable, _ in rows:
        word = ("unacceptable", "acceptable")[label]
        print(f"{p_acceptable:>13.3f}  {word:<12}  {sentence}")


def read_sentences(args: Namespace) -> tuple[list[str], str]:
    """The sentences to judge, and where they are from: the command line, a file, standard input.

    Raises:
        UserError: for none, an empty one, or bytes that are not UTF-8.
    """
    if args.sentences:
        if args.input:
            raise UserError("--input: sentences are given on the command line too; choose one")
        lines, source = args.sentences, "the command line"
    else:
        if not args.input and sys.stdin.isatty():
            print("One sentence a line; Ctrl-D ends the list.", file=sys.stderr)
        source = str(args.input or "standard input")
        content = read_bytes(args.input) if args.input else sys.stdin.buffer.read()
        try:
            lines = content.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise UserError(f"{source}, line {line}: not UTF-8; convert it") from None
    if lines == [""]:
        raise UserError(f"{source}: no sentences; give them as arguments, in a file or piped in")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{source}, line {number}: the sentence is empty; remove the line")
    return [line.rstrip("\r") for line in lines], source


# ---------------------------------------------------------------------------------------------
# export


def run_export(args: Namespace) -> None:
    """Write a checkpoint in a form that needs nothing of this project.

    A teacher becomes a plain Hugging Face folder, base and adapter merged; a student becomes
    ``student.onnx`` with its tokenizer. Both go to ``<out_dir>/exports/<the checkpoint's name>``.
    """
    folder = args.checkpoint or run_folder(args, "LoRA")
    target = args.out_dir / "exports" / folder.resolve().name
    if (folder / ADAPTER_CONFIG).exists():
        variant = args.gpt_variant if "gpt_variant" in args.given else None
        save_merged(load_adapter(folder, variant), target)
        print(f"{target}: transformers.AutoModelForSequenceClassification.from_pretrained loads it")
    else:
        model, tokenizer, _ = load_checkpoint(folder)
        save_onnx(model, len(tokenizer), target / "student.onnx")
        write_files(target, tokenizer.save_pretrained)
        print(f"{target / 'student.onnx'}: inputs input_ids (batch, time) and lengths (batch,)")
