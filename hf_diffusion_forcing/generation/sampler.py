"""What every parallel sampler does around its ticks: prefill, choice of tokens, commits, leaving rows, output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..cache import RecurrentDepthCache
from ..compat import CACHE
from ..configuration import SamplerConfig
from ..randomness import row_seeds
from .choice import TokenChoice
from .committed import CommittedTokens
from .cost_model import PromptAgreement, PromptDepth
from .output import DiffusionForcingOutput, SamplerStats
from .trace import Trace, WaveTick
from .wave import Wave

if TYPE_CHECKING:
    from ..models.interface import RecurrentDepthInterface


class WavefrontSampler(ABC):
    """One `generate()` call: prefill, then ticks over a wavefront until every row has ended.

    A subclass says what a tick is. Rows that have ended leave the batch: the wave, the seeds and the cache go on with
    the live ones.

    Args:
        model: speaks the verbs of `RecurrentDepthInterface`.
        input_ids: int64 [batch, length], left-padded.
        logits_processor: applied to every position with its own prefix.
        stopping_criteria: applied to committed tokens, one at a time, with their scores if they are kept.
        generation_config: transformers' own settings.
        config: the sampler's settings, every depth filled in.
        streamer: gets each committed token once, in order, and drafts if it has a `put_draft`.
        attention_mask: [batch, columns], or None when there is no padding.
        cache: an empty cache, or one that holds the first columns. `input_ids` may then be the new ids
            alone, with an `attention_mask` over all columns, as in transformers.
        columns: all columns up to the last id.
        return_trace: record what every tick does; with "latents" its states too.
    """

    def __init__(
        self,
        model: RecurrentDepthInterface,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        config: SamplerConfig,
        streamer: BaseStreamer | None,
        attention_mask: torch.Tensor | None,
        cache: RecurrentDepthCache,
        columns: int,
        return_trace: bool | str = False,
    ):
        pad = None if generation_config._pad_token_tensor is None else int(generation_config._pad_token_tensor)
        batch, length = input_ids.shape
        self.model, self.config, self.cache = model, config, cache
        self.generation_config = generation_config
        self.committed = CommittedTokens(
            input_ids,
            stopping_criteria,
            pad,
            streamer,
            keep_logits=generation_config.output_logits,
            keep_scores=generation_config.output_scores,
        )
        # Offloaded weights say "meta" and are brought to the ids.
        self.input_ids = input_ids if model.device.type == "meta" else input_ids.to(model.device)
        self.attention_mask = attention_mask
        self.offset = columns - length
        """Columns before the first of `input_ids`, when only new ids were passed with a cache."""
        self.padding = [0] * batch if attention_mask is None else (columns - attention_mask.sum(-1)).tolist()
        """Left padding of each row, counted from the first column there ever was."""
        self.seeds = row_seeds(config.seed, batch, self.input_ids.device)
        """Of the live rows."""
        self.live = list(range(batch))
        """Which row of the batch each row of the wave is."""
        self.choice = TokenChoice(
            input_ids,
            logits_processor,
            self.committed.max_length,
            pad,
            self.seeds if generation_config.do_sample else None,
        )
        self.stats = SamplerStats()
        self.trace: Trace | None = None
        if return_trace:
            starts = [columns - pad for pad in self.padding]
            self.trace = Trace(sampler=config.sampler, budget=config.num_steps, starts=starts)
        self.keeps_latents = return_trace == "latents"

    @abstractmethod
    def begin(self, fronts: list[int], tokens: list[int | None], device: torch.device) -> Wave:
        """The wave before the first tick.

        Args:
            fronts: per row, the position of its first new token.
            tokens: per row, that token; None where it has ended the row.
            device: of the prompt's logits.
        """

    @abstractmethod
    def tick(self, wave: Wave) -> None:
        """Refine the wave, commit what is final, and advance the rows."""

    @abstractmethod
    def end_row(self, wave: Wave, row: int) -> None:
        """A row of the wave has ended, though its last commit did not say so: drop its positions."""

    @property
    def finals(self) -> list[int]:
        """Ids of each live row that are final."""
        return [len(self.committed.rows[row]) for row in self.live]

    def has_room(self, row: int, position: int) -> bool:
        """Whether a position may still predict a token, of a row of the wave."""
        return position <= self.last_position(row)

    def last_position(self, row: int) -> int:
        """The last position that may predict a token, of a row of the wave."""
        return self.offset + self.committed.max_length - self.padding[self.live[row]] - 2

    def prefill(self, on_recurrence: PromptDepth | PromptAgreement | None = None) -> Wave:
        """Run the prompt for `prompt_steps` recurrences and commit each row's first token, where the wave starts."""
        unread = self.input_ids[:, self.cache.columns - self.offset :]
        width = unread.shape[1]
        size = min(self.generation_config.prefill_chunk_size or width, width)
        # The short chunk comes first: where the others begin, counted from a row's end, is then no matter of padding,
        # which what a chunk sees of the ones before it would be with shared keys and values.
        short = [width % size] if width % size else []
        for chunk in unread.split(short + [size] * (width // size), dim=1):
            mask = self.attention_mask
            if on_recurrence is not None:
                on_recurrence.start()
            logits = self.read(
                chunk, None if mask is None else mask[:, : self.cache.columns + chunk.shape[1]], on_recurrence
            )
        length = self.committed.prompt_length
        fronts = [self.offset + length - pad for pad in self.padding]
        positions = torch.tensor(fronts, device=logits.device)[:, None] - 1
        lengths = [range(length, length + 1)] * len(fronts)
        predictions, scores = self.choice(logits, self.input_ids[:, -1:], positions, lengths, self.finals, self.live)
        tokens = []
        for row, (token,) in enumerate(predictions.tolist()):
            ended = self.committed.commit(row, token, logits[row, 0], scores[row, 0])
            tokens.append(None if ended else token)
        return self.begin(fronts, tokens, logits.device)

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, on_recurrence: Callable | None
    ) -> torch.Tensor:
        """Run the model over the next columns of the prompt; logits of the last one, [batch, 1, vocabulary].

        Args:
            input_ids: int64 [batch, columns].
            attention_mask: [batch, columns read so far + these], or None.
            on_recurrence: called after every recurrence with the states [batch, columns, channels] and those before.
        """
        self.stats.prefill_core_passes += self.config.prompt_steps
        return self.model(
            input_ids,
            attention_mask=attention_mask,
            cache=self.cache,
            num_steps=self.config.prompt_steps,
            state_scale=self.config.state_scale,
            seeds=self.seeds,
            logits_to_keep=1,
            on_recurrence=on_recurrence,
        ).logits

    def check_batch(self, wave: Wave) -> None:
        """End the rows that the criteria of the whole batch end."""
        for row in self.committed.check_batch():
            self.end_row(wave, self.live.index(row))

    def let_rows_leave(self, wave: Wave) -> None:
        """Go on with the live rows alone, once enough have ended to pay for copying the cache of the others."""
        staying = [row for row, tokens in enumerate(wave.tokens) if tokens]
        if not staying or 4 * (len(wave.tokens) - len(staying)) < len(wave.tokens):
            return
        wave.keep_rows(staying)
        self.live = [self.live[row] for row in staying]
        self.seeds = self.seeds[torch.tensor(staying, device=self.seeds.device)]
        self.cache.keep_rows(self.live)

    def observe(
        self,
        row: int,
        start: int,
        core_passes: int,
        tokens: list[int],
        recurrences: list[int],
        predictions: list[int | None],
        exit_values: list[float | None] | None = None,
        latents: torch.Tensor | None = None,
    ) -> WaveTick:
        """What the running tick did to a row of the wave, before anything of it is committed; see `WaveTick`.

        Args:
            latents: [width, channels] on the CPU, copied if they are kept.
        """
        return WaveTick(
            tick=self.stats.ticks + 1,
            row=self.live[row],
            start=start,
            core_passes=core_passes,
            tokens=tokens,
            recurrences=recurrences,
            predictions=predictions,
            exit_values=[None] * len(tokens) if exit_values is None else exit_values,
            latents=None if latents is None else latents.clone(),
        )

    def record(self, waves: list[WaveTick], abandoned: bool = False) -> None:
        """Add the waves of a tick that is over to the trace, with what has been committed since they were observed."""
        for wave in waves:
            wave.abandoned = abandoned
            # The front was the row's last committed token.
            wave.committed = self.committed.rows[wave.row][wave.start + 1 + self.padding[wave.row] - self.offset :]
            self.trace.append(wave)

    @torch.no_grad()
    def run(self) -> DiffusionForcingOutput | torch.LongTensor:
        """Prefill and tick until every row has ended.

        Whatever is raised on the way (an interrupt, an error in a streamer or a criterion) leaves the cache with all
        rows and what was committed of them.

        Returns:
            int64 [batch, length + new tokens], or a `DiffusionForcingOutput` with `return_dict_in_generate`.
        """
        committed, streamer = self.committed, self.committed.streamer
        held = self.cache.columns
        try:
            wave = self.prefill()
            if self.trace is not None:
                self.trace.first_tokens = [tokens[-1] for tokens in committed.rows]
            self.check_batch(wave)
            while not committed.all_finished:
                self.let_rows_leave(wave)
                self.tick(wave)
                self.check_batch(wave)
                if hasattr(streamer, "put_draft") and len(wave.tokens[0]) > 1:
                    streamer.put_draft(torch.tensor(wave.tokens[0][1:]))
        finally:
            self.cache.restore_rows()
            # Rows that ended early hold nothing beyond their end: what all rows hold is what the shortest does.
            begun = min(committed.counts) > 0
            self.cache.columns = self.offset + min(map(len, committed.rows)) - 1 if begun else held
        if streamer is not None:
            streamer.end()
        self.stats.tokens_committed = committed.counts
        if self.trace is not None and committed.batch_criteria:
            for row, count in enumerate(committed.counts):
                self.trace.cut(row, count)
        sequences = committed.sequences()
        if not self.generation_config.return_dict_in_generate:
            return sequences
        return DiffusionForcingOutput(
            sequences=sequences,
            scores=committed.stacked(committed.scores),
            logits=committed.stacked(committed.logits),
            stats=self.stats,
            trace=self.trace,
            **{CACHE: self.cache},
        )
