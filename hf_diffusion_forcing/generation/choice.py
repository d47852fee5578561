"""Choose a wave's next tokens from its logits; logits processors see each position with its own prefix."""

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ..compat import prefix_constraint
from ..randomness import keyed_gumbel

PREFIX_FREE = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TopHLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    SuppressTokensLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
)
"""Processors that read only the scores, so one call covers a whole wave. Subclasses do not count."""


class KeyedGumbelProcessor(LogitsProcessor):
    """Adds position-keyed Gumbel noise, so that the argmax samples from the softmax of the processed logits.

    As the last processor, it makes transformers' greedy loop sample with the same noise as the other samplers.

    Args:
        seeds: int64 [batch].
        padding: int64 [batch], left padding of each row.
        scores: collects each call's scores before the noise, for `output_scores`.
    """

    def __init__(self, seeds: torch.Tensor, padding: torch.Tensor, scores: list[torch.Tensor] | None = None):
        self.seeds, self.padding, self.scores = seeds, padding, scores

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.scores is not None:
            self.scores.append(scores)
        positions = input_ids.shape[1] - self.padding
        return scores.float() + keyed_gumbel(self.seeds, positions[:, None], scores.shape[-1])[:, 0]


class Prefix(NamedTuple):
    """The ids before the token that a position predicts.

    Attributes:
        row: number of the row in its call.
        length: ids in the prefix, including the position's own.
        final: how many ids of the row are committed.
    """

    row: int
    length: int
    final: int


class TokenChoice:
    """Chooses a wave's tokens as autoregression would: with the same processors, prefix by prefix.

    Prefix-free processors run once over the whole wave. Any other processor is called, like in `generate()`, with the
    whole batch: once for every prefix length in the wave. Its results for rows without a position of that length
    (such as rows that have ended) are ignored.

    A draft's prefix may turn out wrong. If `prefix_allowed_tokens_fn` raises or allows nothing for such a prefix, the
    draft is left unconstrained until its prefix is final.

    Args:
        input_ids: int64 [batch, length], the left-padded prompts, on the processors' device.
        processors: in order.
        room: the most ids a row may have.
        pad_token_id: pads rows that are shorter than the prefix.
        is_sampling: whether keyed Gumbel noise is added; otherwise the choice is greedy.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        processors: LogitsProcessorList,
        room: int,
        pad_token_id: int | None,
        is_sampling: bool,
    ):
        self.final_lengths: dict[int, int] = {}
        self.vocabulary = 0
        processors = [
            # One row per group, so the function below gets the row's number; it computes the prompt's number itself.
            PrefixConstrainedLogitsProcessor(self._tolerant(*prefix_constraint(p)), 1)
            if type(p) is PrefixConstrainedLogitsProcessor
            else p
            for p in processors
        ]
        self.groups = [
            (prefix_free, list(group)) for prefix_free, group in groupby(processors, lambda p: type(p) in PREFIX_FREE)
        ]
        self.is_sampling = is_sampling
        self.device = input_ids.device
        self.ids: torch.Tensor | None = None
        if not all(prefix_free for prefix_free, _ in self.groups):
            batch, length = input_ids.shape
            self.ids = input_ids.new_full((batch, room), 0 if pad_token_id is None else pad_token_id)
            self.ids[:, :length] = input_ids

    def _tolerant(self, allowed_tokens: Callable, rows_per_prompt: int) -> Callable:
        """Wrap `prefix_allowed_tokens_fn`: where it fails on a draft's prefix, allow everything.

        Args:
            allowed_tokens: called with a prompt's number and ids.
            rows_per_prompt: rows of the batch that continue the same prompt, as transformers counts them.
        """

        def tolerant(row: int, ids: torch.Tensor) -> list[int] | range:
            if len(ids) == self.final_lengths.get(row):
                return allowed_tokens(row // rows_per_prompt, ids)
            try:
                allowed = allowed_tokens(row // rows_per_prompt, ids)
            except Exception:  # the user's function may raise anything on a prefix it was not written for
                return range(self.vocabulary)
            return allowed if len(allowed) > 0 else range(self.vocabulary)

        return tolerant

    def __call__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        prefixes: list[Prefix],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token each position predicts, int64 [1, n], and the scores behind the choice, [1, n, vocabulary].

        Args:
            logits: [1, n, vocabulary].
            tokens, positions, seeds: int64 [1, n]: input ids, absolute positions, and the seeds of their rows.
            prefixes: the prefix of each position.
        """
        scores = self.process(logits, tokens, prefixes) if self.groups else logits
        drawn = scores.to(positions.device)
        if self.is_sampling:
            drawn = drawn.float() + keyed_gumbel(seeds, positions + 1, drawn.shape[-1])
        return drawn.argmax(-1), scores

    def process(self, logits: torch.Tensor, tokens: torch.Tensor, prefixes: list[Prefix]) -> torch.Tensor:
        """Processed scores, float32 [1, n, vocabulary], on the processors' device; arguments as in `__call__`."""
        scores = logits.to(self.device, torch.float32)[0]
        self.vocabulary = scores.shape[-1]
        if self.ids is not None:
            self.final_lengths = {prefix.row: prefix.final for prefix in prefixes}
            # Write the wave's ids at their columns. Every committed id was part of a wave first.
            # (Of a prompt given as embeddings alone the prefix is empty: column -1, the last, is in no prefix.)
            where = [[prefix.row for prefix in prefixes], [prefix.length - 1 for prefix in prefixes]]
            self.ids[tuple(torch.tensor(where, device=self.device))] = tokens[0].to(self.device)
        for prefix_free, group in self.groups:
            if prefix_free:
                unread = self.ids if self.ids is not None else scores.new_empty((len(scores), 0), dtype=torch.int64)
                for processor in group:
                    scores = processor(unread, scores)
            else:
                scores = self._process_by_prefix(group, scores, prefixes)
        return scores[None]

    def _process_by_prefix(
        self, group: list[LogitsProcessor], scores: torch.Tensor, prefixes: list[Prefix]
    ) -> torch.Tensor:
        processed = scores.clone()
        for length in sorted({prefix.length for prefix in prefixes}):
            cells = [cell for cell, prefix in enumerate(prefixes) if prefix.length == length]
            members = torch.tensor([prefixes[cell].row for cell in cells], device=self.device)
            where = torch.tensor(cells, device=self.device)
            step = scores.new_zeros(len(self.ids), scores.shape[-1])
            step[members] = scores[where]
            for processor in group:
                step = processor(self.ids[:, :length], step)
            processed[where] = step[members].float()
        return processed


def choose(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    seeds: torch.Tensor,
    prefixes: list[tuple[TokenChoice, Prefix]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`TokenChoice.__call__` for positions of several calls, each with its own `TokenChoice`."""
    choices = {id(choice): choice for choice, _ in prefixes}
    if len(choices) == 1:
        (choice,) = choices.values()
        return choice(logits, tokens, positions, seeds, [prefix for _, prefix in prefixes])
    predictions, scores = torch.empty_like(tokens), None
    for choice in choices.values():
        cells = [cell for cell, (each, _) in enumerate(prefixes) if each is choice]
        where = torch.tensor(cells, device=positions.device)
        own = (x[:, where.to(x.device)] for x in (logits, tokens, positions, seeds))
        predicted, scored = choice(*own, [prefixes[cell][1] for cell in cells])
        scores = scored.new_empty(1, len(prefixes), scored.shape[-1]).float() if scores is None else scores
        predictions[:, where], scores[:, where.to(scores.device)] = predicted, scored.to(scores)
    return predictions, scores
