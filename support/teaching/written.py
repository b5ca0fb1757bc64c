"""Have a base write sentences by itself, and save them.

It continues a list of training sentences of one label, one a line, and so writes more of their
kind: sampled among the `TOP_K` likeliest tokens, up to the end of the line. After unacceptable ones
it errs a little more often. Whole sentences that are new are saved. They serve every seed and every
student. What a language model writes for its own distillation, and what that gives: He et al. 2021,
Generate, annotate, and learn (https://arxiv.org/abs/2106.06168).
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from data_utils import Split
from support.bases import Base, load_language_model, token_ids, variant_name
from support.corpus import TRAIN
from support.devices import Device
from support.errors import UserError
from support.files import read_json, write_json
from support.fingerprints import corpus_fingerprint, fingerprint
from support.processes import any_process, is_main
from support.runs.locks import locked
from support.runs.resumption import interruptible
from support.teaching.edits import bare

EXAMPLES, TOP_K = 3, 150  # sentences of a prompt, choices a token
PROMPTS, ROWS = 8, 64  # of a batch, continuations of each
WORDS, MOST_TOKENS = range(3, 21), 32  # of a sentence
SAVE_EVERY = 5  # batches
FRUITLESS = 25  # batches in a row that gave nothing new: the model has nothing more to say


def written_sentences(
    base: Base, base_key: str, corpus: dict[str, Split], size: int, device: Device, folder: Path
) -> list[str]:
    """Return ``size`` sentences, the same for every sr_no; none is a sentence of the corpus.

    They are saved in ``folder``, in a file for each base, corpus and kind of device, and gone on
    with from there. ``base_key`` is the fingerprint of the base's weights.
    SIGINT and SIGTERM raise KeyboardInterrupt with all of it saved.
    """
    examples = examples_of(corpus[TRAIN], base.max_length)
    drawn = device.torch.type, device.precision  # each draws and rounds in its own way
    how = repr((*drawn, EXAMPLES, TOP_K, PROMPTS, ROWS, WORDS, MOST_TOKENS))
    known = [sentence for split in corpus.values() for sentence in split.sentences]
    parts = (base_key, base.tokenizer.to_str(), corpus_fingerprint(corpus))
    key = fingerprint(*parts, how, *known)
    path = folder / f"{variant_name(base.name)}_{key[:12]}.json"
    with locked(path.with_suffix(".lock"), wait=True):
        state = {"batches": 0, "sentences": []}
        with suppress(UserError):  # no file, or a broken one: it can be written again
            saved = read_json(path)
            state = saved if is_state(saved) else state
        if any_process(len(state["sentences"]) < size):
            write(base, examples, {bare(sentence) for sentence in known}, size, device, path, state)
            state = read_json(path)
    return state["sentences"][:size]


def examples_of(train: Split, max_length: int) -> list[list[str]]:
    """Return the unacceptable and the acceptable sentences that are short enough for a prompt."""
    most = (max_length - MOST_TOKENS) // EXAMPLES - 1  # and a line's end
    rows = zip(train.sentences, train.labels.tolist(), train.seqlens.tolist(), strict=True)
    fitting = [(sentence, label) for sentence, label, tokens in rows if tokens <= most]
    examples = [[sentence for sentence, label in fitting if label == kind] for kind in (0, 1)]
    for kind, sentences in zip(("unacceptable", "acceptable"), examples, strict=True):
        if len(sentences) < EXAMPLES:
            raise UserError(
                f"--transfer_source: a base writes after {EXAMPLES} {kind} training sentences of "
                f"at most {most} tokens, and this corpus has {len(sentences)}; take edits"
            )
    return examples


def is_state(value: dict) -> bool:
    """Return whether a file's content is what `write` left."""
    sentences, batches = value.get("sentences"), value.get("batches")
    whole = isinstance(sentences, list) and all(isinstance(s, str) for s in sentences)
    return whole and type(batches) is int and batches >= 0


def write(
    base: Base,
    examples: list[list[str]],
    taken: set[str],
    size: int,
    device: Device,
    path: Path,
    state: dict,
) -> None:
    """Add to ``state`` until it has ``size`` sentences. The main process works, others wait."""
    model = load_language_model(base.folder).to(device.torch) if is_main() else None
    separator, ends = sentence_ends(base.tokenizer)
    ends = ends.to(device.torch)
    sentences, fruitless = state["sentences"], 0
    seen = taken | {bare(sentence) for sentence in sentences}
    what = {"desc": f"{base.name} writes", "total": size, "unit": " sentences"}
    with tqdm(**what, initial=len(sentences), disable=None) as bar, interruptible() as interruption:
        while any_process(is_main() and len(sentences) < size and fruitless < FRUITLESS):
            if is_main():
                before, number = len(sentences), state["batches"]
                with device.autocast():
                    batch = continued(model, base.tokenizer, examples, separator, ends, number)
                for sentence in batch:
                    if bare(sentence) not in seen:
                        seen.add(bare(sentence))
                        sentences.append(sentence)
                state["batches"] += 1
                fruitless = 0 if len(sentences) > before else fruitless + 1
                bar.update(len(sentences) - before)
            stop = any_process(interruption.requested)
            if stop or state["batches"] % SAVE_EVERY == 0:
                write_json(path, state)
            if stop:
                raise KeyboardInterrupt
    write_json(path, state)
    if any_process(is_main() and len(sentences) < size):
        raise UserError(
            f"--transfer_size: {base.name} was to write {size} new sentences and has no more than "
            f"{len(sentences)}; ask for fewer, or for --transfer_source edits"
        )


def continued(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: list[list[str]],
    separator: str,
    ends: Tensor,
    number: int,
) -> list[str]:
    """Return the whole sentences among the continuations of the batch of prompts ``number``."""
    rng = np.random.default_rng([0, number])
    prompts = []
    for prompt in range(PROMPTS):
        kind = examples[prompt % 2]
        chosen = rng.choice(len(kind), EXAMPLES, replace=False)
        prompts.append(separator.join(kind[i] for i in chosen) + separator.strip(" "))
    generator = torch.Generator(ends.device).manual_seed(number)
    rows = continuations(model, token_ids(tokenizer, prompts), ends, generator)
    lines = [tokenizer.decode(row).split("\n")[0].strip() for row in rows]
    return [
        line
        for line in lines
        if len(line.split()) in WORDS and line[0].isupper() and line[-1] in ".?!"
    ]


@torch.no_grad()
def continuations(
    model: nn.Module, prompts: list[list[int]], ends: Tensor, generator: torch.Generator
) -> list[list[int]]:
    """Sample `ROWS` continuations of each prompt, each up to one of the tokens ``ends``.

    A prompt's keys and values are computed once, and a row that has ended costs no more. What
    does not end within `MOST_TOKENS` is left out.
    """
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    ids = torch.tensor(ids, device=ends.device)  # (prompts, longest), padded on the left
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=ends.device)
    mask = torch.arange(longest, device=ends.device) >= longest - lengths.unsqueeze(1)
    cache, mask = DynamicCache(config=model.config), mask.long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(
        ids, attention_mask=mask, position_ids=places, past_key_values=cache, logits_to_keep=1
    ).logits[:, -1]

    cache.batch_repeat_interleave(ROWS)
    logits, mask = (x.repeat_interleave(ROWS, dim=0) for x in (logits, mask))
    rows, texts = torch.arange(len(mask), device=ends.device), [[] for _ in range(len(mask))]
    ended = []
    for left in reversed(range(MOST_TOKENS)):
        likeliest, tokens = logits.topk(min(TOP_K, logits.shape[1]))  # (rows, choices)
        drawn = torch.multinomial(likeliest.softmax(dim=1), 1, generator=generator)
        token = tokens.gather(1, drawn).squeeze(1)  # (rows,)
        for row, number in zip(rows.tolist(), token.tolist(), strict=True):
            texts[row].append(number)
        going = ~torch.isin(token, ends)
        ended += rows[~going].tolist()
        if not left or not going.any():
            break
        if not going.all():
            cache.batch_select_indices(going.nonzero().squeeze(1))
            rows, token, mask = rows[going], token[going], mask[going]
        place = mask.sum(1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = model(
            token.unsqueeze(1), attention_mask=mask, position_ids=place, past_key_values=cache
        ).logits[:, -1]
    return [texts[row] for row in sorted(ended)]


def sentence_ends(tokenizer: Tokenizer) -> tuple[str, Tensor]:
    """Return what stands between two sentences of a prompt, and the tokens that end a sentence.

    It is a line's end, where the tokenizer has learnt more than one such token; else its model has
    seen running text alone, as nano, and a space and the marks at a sentence's end do. A special
    token ends a sentence too: it ends the text.
    """
    pieces = tokenizer.decode_batch([[i] for i in range(tokenizer.get_vocab_size())])
    special = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    ends = [i for i, piece in enumerate(pieces) if "\n" in piece]
    marks = [i for i, piece in enumerate(pieces) if piece.endswith((".", "?", "!"))]
    lines = len(ends) > 1
    return "\n" if lines else " ", torch.tensor((ends if lines else marks) + special)
