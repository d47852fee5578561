"""Choose a wave's next tokens from its logits; logits processors see each position with its own prefix."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from ..compat import prefix_constraint
from ..randomness import keyed_gumbel
from .processors import PREFIX_ONLY, kind_of, one_per_row


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

    How a processor is called depends on its kind (`kind_of`):

    - "scores": once over the whole wave.
    - "prefix": with the whole batch, as in `generate()`, once for every prefix length in the wave. A row without a
      position of that length repeats the prefix of one that has it, and its results are ignored. If the processor
      raises on a draft's prefix, it leaves that draft as it is.
    - "calls": once per committed token, in order, with that token's final prefix (`choose_final`). It does not see
      drafts, and drafts are chosen without it. Each row of a batch has a copy of its own, which sees a batch that has
      the row's prefix in every row.

    Args:
        input_ids: int64 [batch, length], the left-padded prompts, on the processors' device.
        processors: in order.
        room: the most ids a row may have.
        pad_token_id: fills ids that are not known yet; no processor sees it.
        is_sampling: whether keyed Gumbel noise is added; otherwise the choice is greedy.

    Attributes:
        waits: whether some processor is of the kind "calls", so that only `choose_final` chooses a row's token.

    Raises:
        ValueError: a processor of the kind "calls" cannot be copied for each row.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        processors: LogitsProcessorList,
        room: int,
        pad_token_id: int | None,
        is_sampling: bool,
    ):
        batch, length = input_ids.shape
        self.refused: set[tuple[int, int]] = set()
        """Row and length of the drafts' prefixes on which a processor raised in the last call."""
        self.asked: set[int] = set()
        """The rows whose results of the current call are used."""
        self.everything: torch.Tensor | None = None
        """All tokens, int64 [vocabulary]; set at the first call."""
        self.groups = [(kind, list(group)) for kind, group in groupby(processors, kind_of)]
        self.waits = any(kind == "calls" for kind, _ in self.groups)
        self.groups = [(kind, [self._prepared(kind, p, batch) for p in group]) for kind, group in self.groups]
        self.is_sampling = is_sampling
        self.device = input_ids.device
        self.ids: torch.Tensor | None = None
        if any(kind != "scores" for kind, _ in self.groups):
            self.ids = input_ids.new_full((batch, room), 0 if pad_token_id is None else pad_token_id)
            self.ids[:, :length] = input_ids

    def _prepared(self, kind: str, processor: LogitsProcessor, batch: int) -> LogitsProcessor | list[LogitsProcessor]:
        if kind == "calls":
            return one_per_row(processor, batch)
        if type(processor) is PrefixConstrainedLogitsProcessor:
            # One row per group, so the function gets the row's number; it computes the prompt's number itself.
            return PrefixConstrainedLogitsProcessor(self._asked_only(*prefix_constraint(processor)), 1)
        return processor

    def _asked_only(self, allowed_tokens: Callable, rows_per_prompt: int) -> Callable:
        """Wrap `prefix_allowed_tokens_fn`: for a row that is not asked about, allow everything without calling it.

        Args:
            allowed_tokens: called with a prompt's number and ids.
            rows_per_prompt: rows of the batch that continue the same prompt, as transformers counts them.
        """

        def allowed(row: int, ids: torch.Tensor) -> list[int] | torch.Tensor:
            return allowed_tokens(row // rows_per_prompt, ids) if row in self.asked else self.everything

        return allowed

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
        self.refused.clear()
        if self.ids is not None:
            # Write the wave's ids at their columns.
            # (Of a prompt given as embeddings alone the prefix is empty: column -1, the last, is in no prefix.)
            where = [[prefix.row for prefix in prefixes], [prefix.length - 1 for prefix in prefixes]]
            self.ids[tuple(torch.tensor(where, device=self.device))] = tokens[0].to(self.device)
        scores = self.process(logits, prefixes) if self.groups else logits
        return self._drawn(scores, positions, seeds), scores

    def guess(self, logits: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """The token each position may predict, int64 [1, n], by the processors that read only scores.

        For guesses, whose prefixes are not known yet: what the other processors would choose is not asked.

        Args:
            logits: [1, n, vocabulary].
            positions, seeds: int64 [1, n].
        """
        scores = logits[0].to(self.device, torch.float32)
        for kind, group in self.groups:
            for processor in group if kind == "scores" else ():
                scores = processor(scores.new_empty((len(scores), 0), dtype=torch.int64), scores)
        return self._drawn(scores[None], positions, seeds)

    def must_choose_again(self, row: int, length: int) -> bool:
        """Whether the token after a row's first `length` ids, now final, needs `choose_final`."""
        return self.waits or (row, length) in self.refused

    def choose_final(
        self, row: int, ids: list[int], position: int, seed: int, logits: torch.Tensor
    ) -> tuple[int, torch.Tensor]:
        """The token that follows a row's committed ids, by all processors, and the scores behind it, [vocabulary].

        With processors of the kind "calls" it must be called once for each of a row's tokens, in order.

        Args:
            row, seed: number and seed of the row.
            ids: the committed ids.
            position: absolute position of the last one.
            logits: [vocabulary], what that position predicts.
        """
        if ids:  # none after a prompt given as embeddings alone
            self.ids[row, len(ids) - 1] = ids[-1]
        scores = self.process(logits[None, None], [Prefix(row, len(ids), len(ids))], is_final=True)
        facts = torch.tensor([[[position]], [[seed]]], device=logits.device)
        return int(self._drawn(scores, *facts)), scores[0, 0]

    def _drawn(self, scores: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """The token with the highest score, with keyed noise when sampling: int64 [1, n]."""
        drawn = scores.to(positions.device)
        if self.is_sampling:
            drawn = drawn.float() + keyed_gumbel(seeds, positions + 1, drawn.shape[-1])
        return drawn.argmax(-1)

    def process(self, logits: torch.Tensor, prefixes: list[Prefix], is_final: bool = False) -> torch.Tensor:
        """Processed scores, float32 [1, n, vocabulary], on the processors' device.

        Args:
            logits: [1, n, vocabulary].
            prefixes: the prefix of each position; its ids are in `ids`.
            is_final: also call the processors of the kind "calls"; then n is 1.
        """
        scores = logits.to(self.device, torch.float32)[0]
        if self.everything is None and self.ids is not None:
            self.everything = torch.arange(scores.shape[-1], device=self.device)
        for kind, group in self.groups:
            if kind == "scores":
                unread = self.ids if self.ids is not None else scores.new_empty((len(scores), 0), dtype=torch.int64)
                for processor in group:
                    scores = processor(unread, scores)
            elif kind == "prefix":
                scores = self._process_by_prefix(group, scores, prefixes)
            elif is_final:
                scores = self._process_in_order(group, scores, prefixes[0])
        return scores[None]

    def _process_by_prefix(
        self, group: list[LogitsProcessor], scores: torch.Tensor, prefixes: list[Prefix]
    ) -> torch.Tensor:
        processed = scores.clone()
        for length in sorted({prefix.length for prefix in prefixes}):
            cells = [cell for cell, prefix in enumerate(prefixes) if prefix.length == length]
            members = [prefixes[cell] for cell in cells]
            rows = torch.tensor([prefix.row for prefix in members], device=self.device)
            where = torch.tensor(cells, device=self.device)
            step = scores.new_zeros(len(self.ids), scores.shape[-1])
            step[rows] = scores[where]
            for processor in group:
                step = self._ask(processor, step, members)
            processed[where] = step[rows].float()
        return processed

    def _ask(self, processor: LogitsProcessor, step: torch.Tensor, members: list[Prefix]) -> torch.Tensor:
        """Call a processor with prefixes of one length, at most one a row; drafts it raises on keep their scores.

        Args:
            step: [batch, vocabulary], the scores of the members' rows.
        """
        self.asked = {prefix.row for prefix in members}
        ids = self.ids[:, : members[0].length]
        if len(members) < len(ids):
            others = [row for row in range(len(ids)) if row not in self.asked]
            ids = ids.clone()
            ids[others] = self.ids[members[0].row, : members[0].length]
        # A processor that raises may have written to the scores before.
        given = step if type(processor) in PREFIX_ONLY else step.clone()
        try:
            return processor(ids, given)
        except Exception:  # a processor may raise anything on a prefix it was not written for
            if all(prefix.length == prefix.final for prefix in members):
                raise
        self.refused.update((prefix.row, prefix.length) for prefix in members if prefix.length > prefix.final)
        if len(members) > 1:
            step = step.clone()
            for prefix in members:
                step[prefix.row] = self._ask(processor, step, [prefix])[prefix.row].float()
        return step

    def _process_in_order(
        self, group: Sequence[list[LogitsProcessor]], scores: torch.Tensor, prefix: Prefix
    ) -> torch.Tensor:
        """Call each processor's copy for a row with the row's prefix: scores [1, vocabulary] before and after."""
        batch = len(self.ids)
        ids, step = self.ids[prefix.row, : prefix.length].repeat(batch, 1), scores.repeat(batch, 1)
        for copies in group:
            step = copies[prefix.row](ids, step)
        return step[prefix.row, None].float()


def cells_of(choices: Sequence[TokenChoice]) -> list[tuple[TokenChoice, list[int]]]:
    """Each of some calls' `TokenChoice`s once, with the cells whose choice it is."""
    shares: dict[int, tuple[TokenChoice, list[int]]] = {}
    for cell, choice in enumerate(choices):
        shares.setdefault(id(choice), (choice, []))[1].append(cell)
    return list(shares.values())


def guess(
    logits: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, choices: list[TokenChoice]
) -> torch.Tensor:
    """`TokenChoice.guess` for positions of several calls, each with its own `TokenChoice`."""
    shares = cells_of(choices)
    if len(shares) == 1:
        return choices[0].guess(logits, positions, seeds)
    guessed = torch.empty_like(positions)
    for choice, cells in shares:
        where = torch.tensor(cells, device=positions.device)
        guessed[:, where] = choice.guess(*(x[:, where.to(x.device)] for x in (logits, positions, seeds)))
    return guessed


def choose(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    seeds: torch.Tensor,
    prefixes: list[tuple[TokenChoice, Prefix]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`TokenChoice.__call__` for positions of several calls, each with its own `TokenChoice`."""
    shares = cells_of([choice for choice, _ in prefixes])
    if len(shares) == 1:
        choice = shares[0][0]
        return choice(logits, tokens, positions, seeds, [prefix for _, prefix in prefixes])
    predictions, scores = torch.empty_like(tokens), None
    for choice, cells in shares:
        where = torch.tensor(cells, device=positions.device)
        own = (x[:, where.to(x.device)] for x in (logits, tokens, positions, seeds))
        predicted, scored = choice(*own, [prefixes[cell][1] for cell in cells])
        scores = scored.new_empty(1, len(prefixes), scored.shape[-1]).float() if scores is None else scores
        predictions[:, where], scores[:, where.to(scores.device)] = predicted, scored.to(scores)
    return predictions, scores
