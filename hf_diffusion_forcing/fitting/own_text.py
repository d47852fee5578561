"""Text that a model writes itself, and its states at several depths: what heads are fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..cache import NoCache, Placement, absolute_positions
from ..evaluation.inspection import padded_rows
from ..evaluation.timing import timed_generate

PAIRS = 6
"""Recurrences of a batch whose states before and after the exit probe learns from."""


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        ids: the prompt and what the model wrote after it.
        prompt_length: ids of the prompt.
    """

    ids: list[int]
    prompt_length: int


def write_texts(
    model, tokenizer, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int, seed: int, progress: bool
) -> list[Text]:
    """What the model writes after prompts: every second batch is sampled, the others are greedy.

    Tokens exit adaptively, which writes nearly the text of full depth in a fraction of its time.

    Args:
        prompts: ids of each.
    """
    texts: list[Text] = []
    for number, first in enumerate(tqdm(range(0, len(prompts), batch_size), desc="writing", disable=not progress)):
        batch = list(prompts[first : first + batch_size])
        settings = {"sampler": "adaptive", "max_new_tokens": max_new_tokens, "seed": seed + first}
        settings |= {"do_sample": True, "top_k": 0, "temperature": 1.0} if number % 2 else {"do_sample": False}
        written = timed_generate(model, padded_rows(model, tokenizer, batch, list(map(len, batch))), settings).rows
        texts += [Text(ids + new, len(ids)) for ids, new in zip(batch, written, strict=True)]
    return texts


@dataclass(eq=False)
class TextBatch:
    """Some texts, padded on the right, with their states.

    Attributes:
        ids: int64 [batch, width].
        at: the placement of a pass over all positions.
        is_new: bool [batch, width], positions that predict a token which the model wrote.
        states: [batch, width, channels] each, by depth.
        pairs: states before and after some recurrences, [n, channels] each, of the new positions, and whether the
            readout after each differs from that of full depth, bool [n].
        depth: full depth.
    """

    ids: torch.Tensor
    at: Placement
    is_new: torch.Tensor
    states: dict[int, torch.Tensor]
    pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    depth: int

    @torch.no_grad()
    def truth(self, model) -> torch.Tensor:
        """The distribution of full depth over the next token, float32 [batch, width, vocabulary]."""
        return model.decode(self.states[self.depth], self.at).float().softmax(-1)


@torch.no_grad()
def text_batch(
    model, texts: Sequence[Text], depths: Sequence[int], deepest: int, generator: torch.Generator
) -> TextBatch:
    """Run texts through all recurrences and keep the states of some.

    Args:
        depths: depths to keep, besides full depth.
        deepest: the pairs are of recurrences up to this one.
        generator: draws the seeds of the initial states, and which pairs to keep.
    """
    width, device, depth = max(len(text.ids) for text in texts), model.device, model.config.mean_recurrence
    ids = torch.tensor([text.ids + [0] * (width - len(text.ids)) for text in texts], device=device)
    lengths = torch.tensor([[len(text.ids)] for text in texts], device=device)
    begins = torch.tensor([[text.prompt_length] for text in texts], device=device)
    columns = torch.arange(width, device=device)
    positions, start = absolute_positions((columns < lengths).long(), 0, tuple(ids.shape), device)
    is_new = (columns >= begins - 1) & (columns < lengths - 1)
    at = NoCache().place(positions, start=start)
    at.ids = ids
    seeds = torch.randint(2**31, (len(texts),), generator=generator).to(device)
    e = model.embed(ids, at)
    state, kept, before = model.initialize_state(e, positions, seeds), {}, {}
    drawn = (torch.randperm(min(deepest, depth), generator=generator)[:PAIRS] + 1).tolist()
    for inner in range(depth):
        previous, state = state, model.recur(state, e, at, inner)
        if inner + 1 in (*depths, *drawn, depth):
            kept[inner + 1] = state
        if inner + 1 in drawn:
            before[inner + 1] = previous
    likeliest = {each: model.decode(kept[each], at).argmax(-1) for each in {*drawn, depth}}
    pairs = [
        (before[each][is_new], kept[each][is_new], (likeliest[each] != likeliest[depth])[is_new]) for each in drawn
    ]
    return TextBatch(ids, at, is_new, {each: kept[each] for each in {*depths, depth}}, pairs, depth)


def text_batches(
    model, texts: Sequence[Text], depths: Sequence[int], deepest: int, batch_size: int, seed: int, progress: bool
) -> list[TextBatch]:
    """Batches of texts of similar length."""
    ordered = sorted(texts, key=lambda text: len(text.ids))
    generator = torch.Generator().manual_seed(seed)
    return [
        text_batch(model, ordered[first : first + batch_size], depths, deepest, generator)
        for first in tqdm(range(0, len(ordered), batch_size), desc="states", disable=not progress)
    ]
