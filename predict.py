"""gen and predict: models at work."""

import json
import sys
from argparse import Namespace

import torch

from data_utils import UNLABELLED, read_lines, tokenize
from support.bases.loading import find_base, load_language_model
from support.checkpoints.students import load_checkpoint
from support.devices import choose_device, keep_freed_memory
from support.errors import UserError
from support.files import read_bytes
from support.runs.folder import run_folder
from train_utils import predict_logits


def run_gen(args: Namespace) -> None:
    """Continue the prompt, printing the text as it is made; the same text for the same sr_no.

    An empty prompt starts from the end-of-text token, which opens a document in GPT-2's training.
    """
    from transformers import AutoTokenizer, TextStreamer

    device = choose_device(args.device, args.precision)
    base = find_base(args.gpt_variant)
    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    ids = tokenizer(args.prompt, verbose=False)["input_ids"]
    opening = tokenizer.bos_token_id
    opening = tokenizer.eos_token_id if opening is None else opening
    if not ids and opening is None:
        raise UserError(f"--prompt: {args.gpt_variant} has no token that opens a text; give one")
    prompt = torch.tensor([ids or [opening]])  # (1, tokens)
    model = load_language_model(base.folder).to(device.torch)
    room = base.max_length - prompt.shape[1]
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


def run_predict(args: Namespace) -> None:
    """Judge sentences with a saved teacher or student: a table, or one JSON object a line."""
    device = choose_device(args.device, args.precision)
    sentences, source = read_sentences(args)
    folder = args.checkpoint or run_folder(args, "LoRA")
    variant = args.gpt_variant if "gpt_variant" in args.given else None
    model, tokenizer, max_length = load_checkpoint(folder, variant)
    split = tokenize(tokenizer, sentences, [UNLABELLED] * len(sentences), max_length, source)
    keep_freed_memory()
    logits = predict_logits(model.to(device.torch), split, device, "judging")  # (sentences, 2)
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
    """The sentences to judge, and where they are from: the command line, a file, standard input."""
    if args.sentences:
        if args.input:
            raise UserError("--input: sentences are given on the command line too; choose one")
        content = "\n".join(args.sentences).encode("utf-8", "surrogateescape")
        source = "the command line"
    else:
        if not args.input and sys.stdin.isatty():
            print("One sentence a line; Ctrl-D ends the list.", file=sys.stderr)
        source = str(args.input or "standard input")
        content = read_bytes(args.input) if args.input else sys.stdin.buffer.read()
    lines = read_lines(content, source)
    if lines == [""]:
        raise UserError(f"{source}: no sentences; give them as arguments, in a file or piped in")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{source}, line {number}: the sentence is empty; remove the line")
    return lines, source
