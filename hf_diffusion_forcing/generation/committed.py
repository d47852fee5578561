"""The tokens that are final: kept per row, checked against every stop, streamed in order."""

import torch
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

ROW_BY_ROW = (MaxTimeCriteria, StopStringCriteria)
"""Criteria that know nothing of other rows: a row need not wait for them. A subclass is not taken for one of them."""


class CommittedTokens:
    """Rows of committed tokens. A row ends exactly at the token that meets a stopping criterion.

    Args:
        input_ids: int64 [batch, length], left-padded prompts.
        stopping_criteria: EOS and length are checked on the host, stop strings and time after every token with that
            row alone. Any other criterion is called as transformers calls it, with the whole batch: `input_ids`
            [batch, length], once for every length, when all rows that go on are as long; and `scores` if they are kept.
        pad_token_id: fills rows that ended early.
        streamer: gets each committed token once, in order.
        keep_logits, keep_scores: keep what each token was chosen by, before and after the processors.

    Raises:
        ValueError: rows may end at different lengths and there is no `pad_token_id`; or a streamer for several rows.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        stopping_criteria: StoppingCriteriaList,
        pad_token_id: int | None,
        streamer: BaseStreamer | None = None,
        keep_logits: bool = False,
        keep_scores: bool = False,
    ):
        self.device = input_ids.device
        self.prompt_length = input_ids.shape[1]
        self.rows: list[list[int]] = input_ids.tolist()
        self.finished = [False] * len(self.rows)
        self.logits: list[list[torch.Tensor]] | None = [[] for _ in self.rows] if keep_logits else None
        self.scores: list[list[torch.Tensor]] | None = [[] for _ in self.rows] if keep_scores else None
        self.pad_token_id = pad_token_id
        self.streamer = streamer
        self.max_length = stopping_criteria.max_length
        self.eos: set[int] = set()
        self.row_criteria, self.batch_criteria = StoppingCriteriaList(), StoppingCriteriaList()
        self.checked = self.prompt_length
        """The length up to which the criteria of the batch have been asked."""
        for criterion in stopping_criteria:
            if type(criterion) is EosTokenCriteria:
                self.eos.update(criterion.eos_token_id.flatten().tolist())
            elif type(criterion) is not MaxLengthCriteria:
                alone = len(self.rows) == 1 or type(criterion) in ROW_BY_ROW
                (self.row_criteria if alone else self.batch_criteria).append(criterion)
        if len(self.rows) > 1 and pad_token_id is None and (self.eos or self.row_criteria or self.batch_criteria):
            raise ValueError("pad_token_id is not set, and rows of a batch may end at different lengths: pass one.")
        if len(self.rows) > 1 and streamer is not None:
            raise ValueError(f"streamer takes one row; the batch has {len(self.rows)}: stream rows one by one.")

    def commit(self, row: int, token: int, logits: torch.Tensor, scores: torch.Tensor) -> bool:
        """Append a token to a row; returns whether the row is finished by it.

        Args:
            logits, scores: [vocabulary], what the token was chosen by; copied if they are kept.
        """
        tokens = self.rows[row]
        tokens.append(token)
        for kept, new in ((self.logits, logits), (self.scores, scores)):
            if kept is not None:
                kept[row].append(new.to(self.device, torch.float32, copy=True))
        if self.streamer is not None:
            self.streamer.put(torch.tensor([token]))
        done = token in self.eos or (self.max_length is not None and len(tokens) >= self.max_length)
        if self.row_criteria:
            ids = torch.tensor([tokens], device=self.device)
            scores = None if self.scores is None else tuple(step[None] for step in self.scores[row])
            done = bool(self.row_criteria(ids, scores).any()) or done
        self.finished[row] = done
        return done

    def check_batch(self) -> list[int]:
        """Ask the criteria of the whole batch about every length that all rows have reached; the rows they ended.

        A row that was ahead is cut back to the length it ended at.
        """
        ended = []
        while self.batch_criteria:
            going_on = [len(tokens) for tokens, done in zip(self.rows, self.finished, strict=True) if not done]
            if self.checked >= (min(going_on) if going_on else max(map(len, self.rows))):
                break
            self.checked += 1
            cut = [tokens[: self.checked] for tokens in self.rows]
            padded = [tokens + [self.pad_token_id] * (self.checked - len(tokens)) for tokens in cut]
            scores = self.stacked(self.scores)
            if scores is not None:
                scores = scores[: self.checked - self.prompt_length]
            verdict = self.batch_criteria(torch.tensor(padded, device=self.device), scores).tolist()
            for row, done in enumerate(verdict):
                if not done or len(cut[row]) < self.checked:
                    continue
                if not self.finished[row]:
                    ended.append(row)
                self.finished[row] = True
                self.rows[row] = cut[row]
                for kept in (self.logits, self.scores):
                    if kept is not None:
                        del kept[row][self.checked - self.prompt_length :]
        return ended

    @property
    def all_finished(self) -> bool:
        return all(self.finished)

    @property
    def counts(self) -> list[int]:
        """New tokens per row."""
        return [len(tokens) - self.prompt_length for tokens in self.rows]

    def sequences(self) -> torch.Tensor:
        """int64 [batch, longest row], right-padded with `pad_token_id` where rows ended early."""
        longest = max(map(len, self.rows))
        padded = [tokens + [self.pad_token_id] * (longest - len(tokens)) for tokens in self.rows]
        return torch.tensor(padded, device=self.device)

    def stacked(self, kept: list[list[torch.Tensor]] | None) -> tuple[torch.Tensor, ...] | None:
        """`logits` or `scores` as transformers returns them: a [batch, vocabulary] per new token, zeros past an end."""
        if kept is None:
            return None
        blank = torch.zeros_like(kept[0][0])
        return tuple(
            torch.stack([row[column] if column < len(row) else blank for row in kept])
            for column in range(max(map(len, kept)))
        )
