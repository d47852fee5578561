"""Diffusion forcing: refine a wave of positions, freeze those that have converged (arXiv 2510.14961, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..cache import RecurrentDepthCache
from ..configuration import DiffusionForcingConfig
from ..exit_criteria import latent_difference
from ..randomness import fold_in, row_seeds
from .choice import choose_tokens
from .committed import CommittedTokens
from .output import DiffusionForcingOutput, SamplerStats
from .wavefront import Wavefront

if TYPE_CHECKING:
    from ..models.interface import RecurrentDepthInterface


class DiffusionForcing:
    """One `generate()` call: prefill at full depth, then ticks until every row has ended.

    Args:
        model: speaks the verbs of `RecurrentDepthInterface`.
        config: validated settings, `num_steps` and `max_steps` filled in.
        cache: holds the keys and values of the positions before the prompt's new part, if any.
        committed: the rows and their stopping rules.
        offset: columns before the first of `committed`, when only new ids were passed with a cache; else 0.
        padding: left padding of each row, counted from the first column there ever was.
        logits_processor: applied to every position with its own prefix.
        seeds: int64 [batch].
        do_sample: sample with keyed Gumbel noise instead of taking the argmax.
    """

    def __init__(
        self,
        model: RecurrentDepthInterface,
        config: DiffusionForcingConfig,
        cache: RecurrentDepthCache,
        committed: CommittedTokens,
        offset: int,
        padding: list[int],
        logits_processor: LogitsProcessorList,
        seeds: torch.Tensor,
        do_sample: bool,
    ):
        self.model, self.config, self.cache, self.committed = model, config, cache, committed
        self.offset, self.padding = offset, padding
        self.logits_processor = logits_processor
        self.seeds = seeds
        self.gumbel_seeds = seeds if do_sample else None
        self.stats = SamplerStats()

    def prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Wavefront:
        """Run the prompt at full depth and commit each row's first token; its position starts the wave."""
        logits = self.model(
            input_ids[:, self.cache.columns - self.offset :],
            attention_mask=attention_mask,
            past_key_values=self.cache,
            num_steps=self.config.num_steps,
            state_scale=self.config.state_scale,
            seeds=self.seeds,
            logits_to_keep=1,
        ).logits
        self.stats.prefill_core_passes = self.config.num_steps
        fronts = [self.offset + len(row) - pad for row, pad in zip(self.committed.rows, self.padding, strict=True)]
        positions = torch.tensor(fronts, device=logits.device)[:, None] - 1
        prefixes = [row[:-1] for row in self.committed.rows]
        last = [row[-1:] for row in self.committed.rows]
        predictions = self._choose(logits, prefixes, last, positions).tolist()
        tokens = []
        for row, (token,) in enumerate(predictions):
            ended = self.committed.commit(row, token)
            tokens.append([] if ended else [token] * self._next_width(row, fronts[row], 0))
        return Wavefront(fronts, tokens, logits.device)

    def _choose(self, logits, prefixes, tokens, positions) -> torch.Tensor:
        return choose_tokens(
            logits, prefixes, tokens, self.logits_processor, self.gumbel_seeds, positions, self.committed.device
        )

    def _next_width(self, row: int, front: int, kept: int) -> int:
        """How wide a row's next wave may be: `headway` more than it keeps, within `wavefront` and the length limit."""
        last_position = self.offset + self.committed.max_length - self.padding[row] - 2
        return min(self.config.wavefront, kept + self.config.headway, last_position - front + 1)

    @torch.no_grad()
    def tick(self, wave: Wavefront) -> None:
        """Refine the wave by `inner_recurrence` core passes, freeze its converged prefix, and move on."""
        model, config, cache = self.model, self.config, self.cache
        input_ids, positions = wave.input_ids(), wave.positions()
        cache.place(positions, start=wave.start, extent=wave.extent)

        first = wave.first_fresh
        e = model.embed(input_ids, positions, cache)
        if config.embedding_momentum > 0:
            e = torch.lerp(e, wave.carry(wave.embeddings, e[:, first:]), config.embedding_momentum)
            wave.embeddings = e
        fresh = e[:, first:]
        if first < wave.width:
            fresh = model.initialize_state(fresh, positions[:, first:], self.seeds, config.state_scale)
        before = state = wave.carry(wave.states, fresh)
        if config.state_noise > 0:
            seeds = fold_in(self.seeds, wave.step_counts() + 1)
            noise = model.initialize_state(e, positions, seeds, 1.0)
            state = torch.lerp(state, noise, config.state_noise)
        # With shared keys and values every recurrence writes the same slot; without, each position has its own depth.
        depth = 0 if cache.kv_sharing == "last" else wave.step_counts()
        for inner in range(config.inner_recurrence):
            state = model.recur(state, e, positions, cache, depth + inner)
        wave.states = state
        logits = model.decode(state, positions, cache)

        prefixes = [row[: len(row) - 1] for row in self.committed.rows] if self.logits_processor else wave.tokens
        predictions = self._choose(logits, prefixes, wave.tokens, positions)
        converged = (latent_difference(state, before) < config.exit_threshold).to(predictions.device)
        # The tick's only wait for the device: what was predicted, and what has converged.
        predictions, converged = torch.stack((predictions, converged.long())).tolist()

        self.stats.ticks += 1
        self.stats.core_passes += config.inner_recurrence
        self.stats.positions_refined += config.inner_recurrence * sum(map(len, wave.tokens))
        for row, tokens in enumerate(wave.tokens):
            if tokens:
                self._freeze(wave, row, predictions[row][: len(tokens)], converged[row])

    def _freeze(self, wave: Wavefront, row: int, predictions: list[int], converged: list[int]) -> None:
        """Commit the predictions of a row's longest converged prefix, and advance the row's wave."""
        config = self.config
        tokens, steps = wave.tokens[row], wave.steps[row]
        frozen, ended = 0, False
        while frozen < len(tokens) and not ended:
            # A position whose own input was a wrong draft has converged to the wrong thing.
            if frozen > 0 and tokens[frozen] != predictions[frozen - 1]:
                break
            # No tick may take the front position past its budget.
            exhausted = steps[frozen] + 2 * config.inner_recurrence > config.max_steps
            if not (converged[frozen] or exhausted):
                break
            ended = self.committed.commit(row, predictions[frozen])
            frozen += 1
        width = 0 if ended else self._next_width(row, wave.fronts[row] + frozen, len(tokens) - frozen)
        wave.advance(row, frozen, predictions, width, config.inner_recurrence)

    def run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Prefill and tick until every row has ended."""
        streamer = self.committed.streamer
        wave = self.prefill(input_ids, attention_mask)
        while not self.committed.all_finished:
            self.tick(wave)
            if hasattr(streamer, "put_draft") and len(wave.tokens[0]) > 1:
                streamer.put_draft(torch.tensor(wave.tokens[0][1:]))
        self.stats.tokens_committed = self.committed.counts


def diffusion_forcing(
    model: RecurrentDepthInterface,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    config: DiffusionForcingConfig,
    streamer: BaseStreamer | None,
    attention_mask: torch.Tensor | None,
    past_key_values: RecurrentDepthCache,
    columns: int,
) -> DiffusionForcingOutput | torch.LongTensor:
    """Decode by diffusion forcing; called by `generate(sampler="diffusion_forcing")`.

    Args:
        model: a recurrent-depth language model.
        input_ids: int64 [batch, length], left-padded.
        config: the settings, `num_steps` and `max_steps` filled in.
        attention_mask: [batch, columns], or None when there is no padding.
        past_key_values: an empty cache, or one that holds the first columns. `input_ids` may then be the new ids
            alone, with an `attention_mask` over all columns, as in transformers.
        columns: all columns up to the last id.

    Returns:
        int64 [batch, length + new tokens], or a `DiffusionForcingOutput` with `return_dict_in_generate`.
    """
    pad = generation_config._pad_token_tensor
    committed = CommittedTokens(input_ids, stopping_criteria, None if pad is None else int(pad), streamer)
    batch, length = input_ids.shape
    if model.device.type != "meta":  # offloaded weights say "meta" and are brought to the ids
        input_ids = input_ids.to(model.device)
    padding = [0] * batch if attention_mask is None else (columns - attention_mask.sum(-1)).tolist()
    sampler = DiffusionForcing(
        model,
        config,
        past_key_values,
        committed,
        columns - length,
        padding,
        logits_processor,
        row_seeds(config.seed, batch, input_ids.device),
        generation_config.do_sample,
    )
    sampler.run(input_ids, attention_mask)
    if streamer is not None:
        streamer.end()
    sequences = committed.sequences()
    # Rows that ended early hold nothing beyond their end: what all rows hold is what the shortest does.
    past_key_values.columns = columns - length + min(map(len, committed.rows)) - 1
    if generation_config.return_dict_in_generate:
        return DiffusionForcingOutput(sequences=sequences, past_key_values=past_key_values, stats=sampler.stats)
    return sequences
