"""From the logits of a wave to its next tokens: processors, each position with its own prefix, then the choice."""

from collections.abc import Callable
from itertools import groupby

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

from ..randomness import keyed_gumbel
from .row import Row

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
"""Processors that look at the scores alone: one call does a whole wave. A subclass is not taken for one of them."""


class KeyedGumbelProcessor(LogitsProcessor):
    """Adds position-keyed Gumbel noise, so the argmax samples the softmax of the processed logits.

    As the last processor it turns transformers' greedy loop into sampling whose noise is the same for every sampler.

    Args:
        seeds: int64 [batch].
        padding: int64 [batch], left padding of each row.
        scores: takes the scores of every call before the noise, which is what `output_scores` means.
    """

    def __init__(self, seeds: torch.Tensor, padding: torch.Tensor, scores: list[torch.Tensor] | None = None):
        self.seeds, self.padding, self.scores = seeds, padding, scores

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.scores is not None:
            self.scores.append(scores)
        positions = input_ids.shape[1] - self.padding
        return scores.float() + keyed_gumbel(self.seeds, positions[:, None], scores.shape[-1])[:, 0]


class TokenChoice:
    """Turns the logits of a wave into tokens as autoregression would: the same processors, prefix by prefix.

    Prefix-free processors run once over the whole wave. Any other one is called once for every prefix length that
    occurs in the wave, with the whole batch, as `generate()` calls it; what it returns for rows that have no position
    of that length (rows that have ended among them) is dropped.

    The prefix of a draft may be one that can never come about. `prefix_allowed_tokens_fn` may raise or allow nothing
    for such a prefix: the draft is then left unconstrained, until its prefix is final.

    Args:
        input_ids: int64 [batch, length], the left-padded prompts, where `generate()` made the processors.
        processors: in order.
        room: ids a row may grow to.
        pad_token_id: fills up rows that are shorter than the prefix.
        is_sampling: whether keyed Gumbel noise is added; else the choice is greedy.
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
            PrefixConstrainedLogitsProcessor(self._tolerant(p._prefix_allowed_tokens_fn), p._num_beams)
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

    def _tolerant(self, allowed_tokens: Callable) -> Callable:
        """`prefix_allowed_tokens_fn` that allows everything where a draft's prefix is beyond it."""

        def tolerant(row: int, ids: torch.Tensor) -> list[int] | range:
            if len(ids) == self.final_lengths.get(row):
                return allowed_tokens(row, ids)
            try:
                allowed = allowed_tokens(row, ids)
            except Exception:  # whatever the user's function raises where it was never meant to be called
                return range(self.vocabulary)
            return allowed if len(allowed) > 0 else range(self.vocabulary)

        return tolerant

    def __call__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        rows: list[Row],
        lengths: list[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token each position predicts, int64 [1, n], and the scores it was chosen by, [1, n, vocabulary].

        Args:
            logits: [1, n, vocabulary].
            tokens, positions, seeds: int64 [1, n], the ids at the positions, where they stand, and their rows' seeds.
            rows: the row of each position.
            lengths: of each position's prefix among its row's ids, its own id included.
        """
        scores = self.process(logits, tokens, rows, lengths) if self.groups else logits
        drawn = scores.to(positions.device)
        if self.is_sampling:
            drawn = drawn.float() + keyed_gumbel(seeds, positions + 1, drawn.shape[-1])
        return drawn.argmax(-1), scores

    def process(self, logits: torch.Tensor, tokens: torch.Tensor, rows: list[Row], lengths: list[int]) -> torch.Tensor:
        """Processed scores, float32 [1, n, vocabulary], on the processors' device; the arguments are a call's."""
        scores = logits.to(self.device, torch.float32)[0]
        self.vocabulary = scores.shape[-1]
        numbers = [row.number for row in rows]
        if self.ids is not None:
            self.final_lengths = {row.number: len(row.ids) for row in rows}
            # The wave's ids where they stand. What is committed has stood in the wave first.
            ends = torch.tensor(lengths, device=self.device) - 1
            self.ids[torch.tensor(numbers, device=self.device), ends] = tokens[0].to(self.device)
        for prefix_free, group in self.groups:
            if prefix_free:
                unread = self.ids if self.ids is not None else scores.new_empty((len(scores), 0), dtype=torch.int64)
                for processor in group:
                    scores = processor(unread, scores)
            else:
                scores = self._process_by_prefix(group, scores, numbers, lengths)
        return scores[None]

    def _process_by_prefix(
        self, group: list[LogitsProcessor], scores: torch.Tensor, numbers: list[int], lengths: list[int]
    ) -> torch.Tensor:
        processed = scores.clone()
        for length in sorted(set(lengths)):
            cells = [cell for cell, each in enumerate(lengths) if each == length]
            members = torch.tensor([numbers[cell] for cell in cells], device=self.device)
            where = torch.tensor(cells, device=self.device)
            step = scores.new_zeros(len(self.ids), scores.shape[-1])
            step[members] = scores[where]
            for processor in group:
                step = processor(self.ids[:, :length], step)
            processed[where] = step[members].float()
        return processed
