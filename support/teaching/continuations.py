"""Sample continuations of prompts, many of each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: list[list[int]],
    rows: int,
    top_k: int,
    most_tokens: int,
    ends: Tensor,
    generator: torch.Generator,
) -> list[list[int]]:
    """Sample ``rows`` continuations of each prompt; return those that end within ``most_tokens``.

    ``ends`` (vocabulary,) is true at the tokens that end one. Each prompt is read once for all its
    rows, and a row that has ended leaves the batch: Hugging Face's `generate` does neither.
    """
    from transformers import DynamicCache

    longest, device = max(map(len, prompts)), ends.device
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]  # padded on the left
    ids = torch.tensor(ids, device=device)  # (prompts, longest)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) >= longest - lengths.unsqueeze(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    logits = model(ids, attention_mask=mask, position_ids=positions, **options).logits[:, -1]
    cache.batch_repeat_interleave(rows)
    logits = logits.repeat_interleave(rows, dim=0)  # (prompts * rows, vocabulary)

    going = torch.arange(len(logits), device=device)  # the rows in the batch
    texts = torch.zeros(len(going), most_tokens, dtype=torch.long, device=device)
    text_lengths = torch.zeros_like(going)  # of the rows that have ended
    for step in range(most_tokens):
        known = logits[:, : len(ends)]  # a base may have rows for ids that its tokenizer lacks
        likeliest, choices = known.topk(min(top_k, known.shape[1]))
        drawn = torch.multinomial(likeliest.float().softmax(dim=1), 1, generator=generator)
        tokens = choices.gather(1, drawn).flatten()
        texts[going, step] = tokens
        text_lengths[going[ends[tokens]]] = step + 1
        left = (~ends[tokens]).nonzero().flatten()
        if not len(left) or step + 1 == most_tokens:
            break
        cache.batch_select_indices(left)
        going, tokens = going[left], tokens[left]
        prompt = going // rows
        seen = F.pad(mask[prompt], (0, step + 1), value=True)
        positions = (lengths[prompt] + step).unsqueeze(1)
        logits = model(
            tokens.unsqueeze(1), attention_mask=seen, position_ids=positions, **options
        ).logits[:, -1]
    ended = zip(texts.tolist(), text_lengths.tolist(), strict=True)
    return [text[:length] for text, length in ended if length]
