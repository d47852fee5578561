"""From the logits of a wave to its next tokens: processors, each position with its own prefix, then the choice."""

from collections.abc import Callable, Sequence
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
        seeds: int64 [batch] to sample with keyed Gumbel noise; None for greedy.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        processors: LogitsProcessorList,
        room: int,
        pad_token_id: int | None,
        seeds: torch.Tensor | None,
    ):
        self.final_lengths: dict[int, int] = {}
        self.vocabulary = 0
        processors = [
            # One row to a group, so that the function below is told the row; which prompt it is of, it counts itself.
            PrefixConstrainedLogitsProcessor(self._tolerant(p._prefix_allowed_tokens_fn, p._num_beams), 1)
            if type(p) is PrefixConstrainedLogitsProcessor
            else p
            for p in processors
        ]
        self.groups = [
            (prefix_free, list(group)) for prefix_free, group in groupby(processors, lambda p: type(p) in PREFIX_FREE)
        ]
        self.seeds = seeds
        self.device = input_ids.device
        self.ids: torch.Tensor | None = None
        if not all(prefix_free for prefix_free, _ in self.groups):
            # One place more than there is room: the columns past a row's wave are written there.
            batch, length = input_ids.shape
            self.ids = input_ids.new_full((batch, room + 1), 0 if pad_token_id is None else pad_token_id)
            self.ids[:, :length] = input_ids

    def _tolerant(self, allowed_tokens: Callable, rows_per_prompt: int) -> Callable:
        """`prefix_allowed_tokens_fn` that allows everything where a draft's prefix is beyond it.

        Args:
            allowed_tokens: of a prompt's number and ids.
            rows_per_prompt: rows of the batch that continue the same prompt, as transformers counts them.
        """

        def tolerant(row: int, ids: torch.Tensor) -> list[int] | range:
            if len(ids) == self.final_lengths.get(row):
                return allowed_tokens(row // rows_per_prompt, ids)
            try:
                allowed = allowed_tokens(row // rows_per_prompt, ids)
            except Exception:  # whatever the user's function raises where it was never meant to be called
                return range(self.vocabulary)
            return allowed if len(allowed) > 0 else range(self.vocabulary)

        return tolerant

    def process(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        lengths: list[Sequence[int]],
        finals: list[int],
        rows: list[int],
    ) -> torch.Tensor:
        """Processed scores, float32 [live rows, width, vocabulary], on the processors' device.

        Args:
            logits: [live rows, width, vocabulary].
            tokens: int64 [live rows, width], the ids at the wave's positions.
            lengths: per live row, the lengths of its positions' prefixes, their own ids included; 0, or nothing at
                the end, for columns the row has no position in.
            finals: per live row, how many of its ids are final.
            rows: the live rows' numbers in the batch.
        """
        scores = logits.to(self.device, torch.float32)
        self.vocabulary = scores.shape[-1]
        if self.ids is not None:
            self.final_lengths = dict(zip(rows, finals, strict=True))
            self._write(tokens, lengths, rows)
        for prefix_free, group in self.groups:
            if prefix_free:
                flat = scores.flatten(0, 1)
                unread = self.ids if self.ids is not None else flat.new_empty((len(flat), 0), dtype=torch.int64)
                for processor in group:
                    flat = processor(unread, flat)
                scores = flat.view_as(scores)
            else:
                scores = self._process_by_prefix(group, scores, lengths, rows)
        return scores

    def _write(self, tokens: torch.Tensor, lengths: list[Sequence[int]], rows: list[int]) -> None:
        """Put the wave's ids where they stand. What is committed has stood in the wave first."""
        # Length 0 points at -1, the place nobody reads.
        columns = [[n - 1 for n in each] + [-1] * (tokens.shape[1] - len(each)) for each in lengths]
        index = torch.tensor(rows, device=self.device)[:, None], torch.tensor(columns, device=self.device)
        self.ids[index] = tokens.to(self.device)

    def _process_by_prefix(self, group, scores, lengths: list[Sequence[int]], rows: list[int]) -> torch.Tensor:
        batch = len(self.ids)
        processed = scores.clone()
        for length in sorted({n for each in lengths for n in each if n}):
            members = [(live, each.index(length)) for live, each in enumerate(lengths) if length in each]
            live, columns = (torch.tensor(index, device=self.device) for index in zip(*members, strict=True))
            numbers = torch.tensor([rows[live] for live, _ in members], device=self.device)
            step = scores.new_zeros(batch, scores.shape[-1])
            step[numbers] = scores[live, columns]
            for processor in group:
                step = processor(self.ids[:, :length], step)
            processed[live, columns] = step[numbers].float()
        return processed

    def __call__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        lengths: list[Sequence[int]],
        finals: list[int],
        rows: list[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token each position predicts, int64 [live rows, width], and the scores it was chosen by.

        Args:
            positions: int64 [live rows, width], absolute, on the model's device. The others are `process()`'s.
        """
        scores = self.process(logits, tokens, lengths, finals, rows) if self.groups else logits
        drawn = scores.to(positions.device)
        if self.seeds is not None:
            seeds = (
                self.seeds[torch.tensor(rows, device=self.seeds.device)] if len(rows) < len(self.seeds) else self.seeds
            )
            drawn = drawn.float() + keyed_gumbel(seeds, positions + 1, drawn.shape[-1])
        return drawn.argmax(-1), scores
