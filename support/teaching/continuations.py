"""Sample continuations of prompts, many of each, with what they share computed once.

Hugging Face's `generate` gives each continuation its prompt's keys and values anew and joins them
to its own at every token. Here a prompt's are kept once, and a row has those of its own tokens, in
buffers of a fixed size. Attention takes its softmax over both (Hydragen, Juravsky et al. 2024,
https://arxiv.org/abs/2402.05099, section 3).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP = 16  # rows in memory are a multiple of this: oneDNN builds a product for each new number


class Wanted(NamedTuple):
    """What a continuation should be; tensors are (vocabulary,), true at some tokens."""

    ends: Tensor  # tokens that end it
    openers: Tensor  # tokens that it may begin with
    words: Tensor  # tokens that begin a word
    most_words: int
    most_tokens: int


class Memory:
    """Keys and values by layer: of prompts (prompts, heads, longest, dim), of rows' own tokens."""

    def __init__(self, mask: Tensor, rows: int, tokens: int):
        """Hold ``rows`` of each prompt; ``mask (prompts, longest)`` is true at prompts' tokens."""
        self.mask, self.tokens, self.used = mask, tokens, -1  # -1 while the prompts are read
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.own: list[tuple[Tensor, Tensor]] = []  # (rows, heads, tokens, dim)
        self.group(torch.arange(len(mask), device=mask.device).repeat_interleave(rows))

    def group(self, prompt: Tensor) -> None:
        """Take rows whose prompts are ``prompt (rows,)``, rising."""
        counts = prompt.bincount(minlength=len(self.mask))
        first = counts.cumsum(0) - counts  # the first row of each prompt
        within = torch.arange(len(prompt), device=prompt.device) - first[prompt]
        self.prompt, self.most = prompt, int(counts.max())
        self.places = prompt * self.most + within  # (rows,) of a grid (prompts, most)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, by their places."""
        for pair in self.own:
            for buffer in pair:
                buffer[: len(rows), :, : self.used] = buffer[rows, :, : self.used]
        self.own = [(keys[: len(rows)], values[: len(rows)]) for keys, values in self.own]
        self.group(self.prompt[rows])

    def by_prompt(self, x: Tensor, other: Tensor) -> Tensor:
        """Return x @ other of x (rows, heads, n, k) and other (prompts, heads, k, m)."""
        prompts, (_, heads, n, k) = len(self.mask), x.shape
        grid = x.new_zeros(prompts * self.most, heads, n, k)
        grid[self.places] = x
        grid = grid.view(prompts, self.most, heads, n, k).transpose(1, 2).flatten(2, 3)
        product = (grid @ other).unflatten(2, (self.most, n)).transpose(1, 2)
        return product.flatten(0, 1)[self.places]  # (rows, heads, n, m)


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    *,
    memory: Memory,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attend to a memory, for `transformers.AttentionInterface`, and add to it.

    First come whole prompts, query (prompts, heads, longest, dim), then one token of each row,
    (rows, heads, 1, dim). Key and value are alike, with as many heads or fewer.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (x.float() for x in (query, key, value))
        attend = read_prompts if memory.used < 0 else read_token
        return attend(module.layer_idx, query, key, value, scaling, memory), None


def read_prompts(
    layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, memory: Memory
) -> Tensor:
    """Attend causally within each prompt, and make room for its rows' own tokens."""
    seen = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    itself = torch.eye(len(seen), dtype=torch.bool, device=seen.device)  # or padding would see none
    seen = (seen & memory.mask.unsqueeze(1) | itself).unsqueeze(1)  # (prompts, 1, longest, longest)
    memory.prompts.append((key, value))
    size = len(memory.places), key.shape[1], memory.tokens, key.shape[3]
    memory.own.append((key.new_empty(size), key.new_empty(size)))
    grouped = key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def read_token(
    layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, memory: Memory
) -> Tensor:
    """Attend from each row's new token to its prompt and to its own tokens."""
    (prompt_keys, prompt_values), (keys, values) = memory.prompts[layer], memory.own[layer]
    keys[:, :, memory.used], values[:, :, memory.used] = key[:, :, 0], value[:, :, 0]
    keys, values = (x[:, :, : memory.used + 1] for x in (keys, values))
    # (rows, key heads, query heads of each, dim)
    q = scaling * query.view(*key.shape[:2], -1, key.shape[3])
    before = memory.by_prompt(q, prompt_keys.transpose(2, 3))
    before = before.masked_fill(~memory.mask[memory.prompt, None, None], float("-inf"))
    weights = torch.cat([before, q @ keys.transpose(2, 3)], dim=3).softmax(dim=3)
    longest = before.shape[3]
    out = memory.by_prompt(weights[..., :longest], prompt_values) + weights[..., longest:] @ values
    return out.view(len(out), 1, -1, key.shape[3])


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: list[list[int]],
    rows: int,
    top_k: int,
    wanted: Wanted,
    generator: torch.Generator,
) -> list[list[int]]:
    """Sample ``rows`` continuations of each prompt; return those that end as they are wanted.

    The model attends by `shared_prompt_attention`. A row that cannot be what is wanted any more is
    given up, so the others cost less; they are drawn as without that.
    """
    longest, device = max(map(len, prompts)), wanted.ends.device
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]  # padded on the left
    ids = torch.tensor(ids, device=device)  # (prompts, longest)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    places = torch.arange(longest, device=device) - longest + lengths.unsqueeze(1)
    memory = Memory(places >= 0, rows, wanted.most_tokens)
    texts, whole = [[] for _ in memory.prompt], []
    held = torch.arange(len(texts), device=device)  # the rows in memory
    going = torch.ones_like(held, dtype=torch.bool)  # which of these have not ended
    words = torch.zeros_like(held)
    places = places.clamp(min=0)
    for step in range(wanted.most_tokens):
        logits = model(
            ids, position_ids=places, use_cache=False, logits_to_keep=1, memory=memory
        ).logits[:, -1]
        if step == 0:
            logits, ids = (x.repeat_interleave(rows, dim=0) for x in (logits, ids[:, -1:]))
        likeliest, choices = (x[going] for x in logits.topk(min(top_k, logits.shape[1])))
        drawn = torch.multinomial(likeliest.float().softmax(dim=1), 1, generator=generator)
        ids[going] = choices.gather(1, drawn)  # of ids (rows held, 1)
        tokens = ids.flatten()
        for row, token in zip(held[going].tolist(), tokens[going].tolist(), strict=True):
            texts[row].append(token)
        words += wanted.words[tokens]
        going &= (wanted.openers[tokens] | (step > 0)) & (words <= wanted.most_words)
        whole += held[going & wanted.ends[tokens]].tolist()
        going &= ~wanted.ends[tokens]
        memory.used += 1
        left = int(going.sum())
        if not left:
            break
        if (room := left + -left % STEP) < len(held):
            kept = going.int().argsort(descending=True, stable=True)[:room].sort().values
            memory.keep(kept)
            held, ids, going, words = held[kept], ids[kept], going[kept], words[kept]
        places = lengths[memory.prompt].unsqueeze(1) + step
    return [texts[row] for row in sorted(whole)]
