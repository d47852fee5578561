"""One `generate()` call, from its arguments to its output."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..cache import RecurrentDepthCache
from ..compat import CACHE, has_forward_hooks
from ..models.interface import RecurrentDepthInterface
from ..randomness import row_seeds
from ..settings.sampler_config import SamplerConfig
from .call import Call
from .choice import TokenChoice
from .forward_context import autocast_of_forward, warn_about_hooks
from .in_place import RowsInPlace
from .loop import Loop
from .output import DiffusionForcingOutput
from .prompt_inputs import PromptInputs
from .recorder import Recorder
from .sampler import TickingSampler
from .stopping import Stopping
from .trace import Trace


class Batch:
    """One `generate()` call as rows of a loop.

    Args:
        model: implements `RecurrentDepthInterface`.
        sampler_class: the sampler that decodes.
        prompt: the prompts. As in transformers, their ids may be only the new ones if the cache holds the columns
            before them and the mask covers all columns.
        logits_processor: applied to every position with its own prefix.
        stopping_criteria: EOS and length are checked on the host; stop strings and time after every token, with only
            that row. Any other criterion is called with the whole batch, as in transformers: `input_ids`
            [batch, length], once for every length that all rows reach, and `scores` if they are kept.
        generation_config: transformers' own settings.
        config: the sampler's settings, every depth filled in.
        streamer: gets each committed token once, in order, and drafts if it has a `put_draft`.
        cache: empty, or holding the first columns.
        pad_token_id: pads rows that end early.
        return_trace: record what every tick does; with "latents" its states too.

    Raises:
        ValueError: rows may end at different lengths but there is no `pad_token_id`, or several rows have a streamer.
    """

    def __init__(
        self,
        model: RecurrentDepthInterface,
        sampler_class: type[TickingSampler],
        prompt: PromptInputs,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        config: SamplerConfig,
        streamer: BaseStreamer | None,
        cache: RecurrentDepthCache,
        pad_token_id: int | None,
        return_trace: bool | str = False,
    ):
        input_ids = prompt.ids
        batch, length = input_ids.shape
        self.device, self.cache, self.streamer, self.pad_token_id = input_ids.device, cache, streamer, pad_token_id
        self.length, self.columns_before = length, prompt.columns - length
        self.returns_dict = generation_config.return_dict_in_generate
        stopping, self.criteria = Stopping.of(stopping_criteria, batch, input_ids.device)
        if batch > 1 and pad_token_id is None and (stopping.eos or stopping.criteria or self.criteria):
            raise ValueError("pad_token_id is not set, but rows of a batch may end at different lengths: pass one.")
        if batch > 1 and streamer is not None:
            raise ValueError(f"streamer takes one row; the batch has {batch}: stream rows one by one.")
        self.checked = length
        """The length up to which the batch's criteria have been checked."""

        choice = TokenChoice(
            input_ids, logits_processor, stopping.max_length, pad_token_id, bool(generation_config.do_sample)
        )
        keeps = bool(generation_config.output_logits), bool(generation_config.output_scores)
        call = Call(choice, stopping, streamer, *keeps)
        self.rows = prompt.rows(call, row_seeds(config.seed, batch).tolist(), cache.columns)
        cache.limit = max(row.last_position for row in self.rows) + 1
        self.trace = None
        if return_trace:
            starts = [row.shift + length for row in self.rows]
            self.trace = Trace(sampler=config.sampler, budget=config.num_steps, starts=starts)
        # With offloaded weights the model's device is "meta"; they are moved to the ids.
        device = input_ids.device if model.device.type == "meta" else model.device
        recorder = None if self.trace is None else Recorder(self.trace, return_trace == "latents")
        warn_about_hooks(model, config.sampler)
        self.autocast = autocast_of_forward(model, device)
        in_place = RowsInPlace(model, batch) if batch > 1 and has_forward_hooks(model) else None
        if in_place is not None and config.is_exact:
            raise ValueError(
                f"exact=True is not possible for a batch of {batch} rows while forward hooks inside the model look at "
                "rows, as PEFT's adapter_names do: decode the rows one by one, remove the hooks, or leave exact out."
            )
        sampler = sampler_class(
            in_place or model, cache, config, device, generation_config.prefill_chunk_size, recorder
        )
        self.stats = sampler.stats
        self.loop = Loop(sampler, cache)
        if in_place is not None:
            in_place.seated = self.loop.seated

    @torch.no_grad()
    def run(self) -> DiffusionForcingOutput | torch.LongTensor:
        """Decode until every row has ended.

        After an exception (an interrupt, an error in a streamer or a criterion) the cache holds the committed ids of
        all rows.

        Returns:
            int64 [batch, length + new tokens], or a `DiffusionForcingOutput` with `return_dict_in_generate`.
        """
        loop, held = self.loop, self.cache.columns
        try:
            with self.autocast:
                self._decode()
        finally:
            loop.restore_seats(self.rows)
            # Rows hold nothing past their end, so all rows hold only what the shortest one does.
            shortest = min(len(row.ids) for row in self.rows)
            self.cache.columns = self.columns_before + shortest - 1 if shortest > self.length else held
        if self.streamer is not None:
            self.streamer.end()
        return self._output()

    def _decode(self) -> None:
        loop = self.loop
        loop.join(self.rows)
        self._check_criteria()
        while loop.rows:
            loop.tick()
            self._check_criteria()
            if hasattr(self.streamer, "put_draft") and loop.rows and len(loop.rows[0].wave) > 1:
                self.streamer.put_draft(torch.tensor([position.token for position in loop.rows[0].wave[1:]]))

    def _check_criteria(self) -> None:
        """Check the criteria of the whole batch at every length that all rows have reached.

        A row that is longer than the length at which it ends is cut back.
        """
        while self.criteria:
            going_on = [len(row.ids) for row in self.rows if not row.has_ended]
            if self.checked >= (min(going_on) if going_on else max(len(row.ids) for row in self.rows)):
                break
            self.checked += 1
            padded = self._padded([row.ids[: self.checked] for row in self.rows], self.checked)
            scores = self._stacked([row.scores for row in self.rows])
            if scores is not None:
                scores = scores[: self.checked - self.length]
            verdict = self.criteria(padded, scores).tolist()
            for row, is_over in zip(self.rows, verdict, strict=True):
                if is_over and len(row.ids) >= self.checked:
                    if not row.has_ended:
                        self.loop.end(row)
                    del row.ids[self.checked :]
                    del row.logits[self.checked - self.length :], row.scores[self.checked - self.length :]

    def _padded(self, rows: list[list[int]], length: int) -> torch.Tensor:
        """int64 [batch, length], right-padded with `pad_token_id` where rows ended early."""
        padded = [ids + [self.pad_token_id] * (length - len(ids)) for ids in rows]
        return torch.tensor(padded, device=self.device)

    def _stacked(self, kept: list[list[torch.Tensor]]) -> tuple[torch.Tensor, ...] | None:
        """Rows' logits or scores as transformers returns them: [batch, vocabulary] per new token, zeros past an end."""
        if not kept[0]:
            return None
        blank = torch.zeros_like(kept[0][0])
        return tuple(
            torch.stack([row[column] if column < len(row) else blank for row in kept])
            for column in range(max(map(len, kept)))
        )

    def _output(self) -> DiffusionForcingOutput | torch.LongTensor:
        counts = [len(row.ids) - self.length for row in self.rows]
        self.stats.tokens_committed = counts
        if self.trace is not None and self.criteria:
            for row, count in enumerate(counts):
                self.trace.cut(row, count)
        if self.trace is not None:
            self.stats.settled = self.trace.settled
        sequences = self._padded([row.ids for row in self.rows], self.length + max(counts))
        if not self.returns_dict:
            return sequences
        return DiffusionForcingOutput(
            sequences=sequences,
            scores=self._stacked([row.scores for row in self.rows]),
            logits=self._stacked([row.logits for row in self.rows]),
            stats=self.stats,
            trace=self.trace,
            **{CACHE: self.cache},
        )
