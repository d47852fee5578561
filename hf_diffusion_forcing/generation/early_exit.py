"""Samplers that stop refining a position when an exit criterion says so."""

from abc import abstractmethod

import torch

from ..cache.recurrent_depth_cache import absolute_positions
from ..cache.unpadding import Unpadding
from ..hooks.refinement import Refinement
from ..settings.early_exit import EarlyExitConfig
from .sampler import WavefrontSampler
from .trace import WaveTick, as_bits, from_bits
from .wavefront import Wavefront


class EarlyExitSampler(WavefrontSampler):
    """A `WavefrontSampler` with an exit criterion."""

    config: EarlyExitConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.criterion = self.config.criterion()
        self.criterion.check_model(self.model)
        if self.trace is not None:
            self.trace.criterion = getattr(self.criterion, "name", type(self.criterion).__name__)
            self.trace.threshold = getattr(self.criterion, "threshold", None)

    @abstractmethod
    def next_width(self, row: int, front: int, kept: int) -> int:
        """How wide the next wave of a row of the wave may be, with its front there and `kept` positions kept."""

    def begin(self, fronts: list[int], tokens: list[int | None], device: torch.device) -> Wavefront:
        """Each row's first token, and behind it drafts that repeat it."""
        rows = enumerate(zip(fronts, tokens, strict=True))
        drafts = [[] if token is None else [token] * self.next_width(row, front, 0) for row, (front, token) in rows]
        return Wavefront(fronts, drafts, device)

    def end_row(self, wave: Wavefront, row: int) -> None:
        wave.end_row(row)

    def choose(
        self, wave: Wavefront, logits: torch.Tensor, input_ids: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each position of the wave predicts, int64 [live rows, width], and the scores it was chosen by."""
        lengths = []
        for row, tokens in enumerate(wave.tokens):
            front = len(self.committed.rows[self.live[row]])
            lengths.append(range(front, front + len(tokens)))
        return self.choice(logits, input_ids, positions, lengths, self.finals, self.live)

    def read(self, input_ids, attention_mask, on_recurrence):
        """The prompt's next columns, at full depth or, with `adaptive_prefill`, until they have converged.

        Then the longest converged prefix stops, recurrence by recurrence: a position that only waits for what is on
        its left does not count as converged.
        """
        if not self.config.adaptive_prefill:
            return super().read(input_ids, attention_mask, on_recurrence)
        model, cache, steps = self.model, self.cache, self.config.prefill_steps
        positions, start = absolute_positions(attention_mask, cache.columns, input_ids.shape, input_ids.device)
        extent = cache.columns + input_ids.shape[1]
        cache.place(positions, start=start, extent=extent)
        e = model.embed(input_ids, positions, cache)
        s = model.initialize_state(e, positions, self.seeds, self.config.state_scale)
        done, settled, alike, memory = 0, positions < 0, start is not None, {}
        for step in range(steps):
            here = positions[:, done:].masked_fill(settled[:, done:].to(positions.device), -1)
            # Rows converge, and are padded, each as far as it may be: what has stopped is left out.
            going_on = ~settled[:, done:]
            unpadding = Unpadding() if alike else Unpadding.of(going_on, int(going_on.sum()))
            start_here = start + done if alike else None
            placed = cache.place(here, start=start_here, extent=extent, unpadding=unpadding).positions
            state, embedding = unpadding.unpad(s[:, done:]), unpadding.unpad(e[:, done:])
            refined = unpadding.pad(model.recur(state, embedding, placed, cache, step))
            s = s.to(refined.device)  # the core may stand on another device
            before, s = s, s.clone()
            settled = settled.to(refined.device)
            s[:, done:] = torch.where(settled[:, done:, None], before[:, done:], refined)
            if on_recurrence is not None:
                on_recurrence(s, before)
            refinement = Refinement(
                positions=here,
                input_ids=input_ids[:, done:],
                fresh=torch.full_like(here, step == 0, dtype=torch.bool),
                steps=torch.full_like(here, step),
                recurrences=1,
                budget=steps,
                seeds=self.seeds,
                model=model,
                memory=memory,
                before=before[:, done:],
                states=s[:, done:],
            )
            if self.criterion.needs_logits:
                refinement.logits = unpadding.pad(model.decode(unpadding.unpad(s[:, done:]), placed, cache))
                refinement.predictions = refinement.logits.argmax(-1)
            still = settled[:, done:] | self.converged(refinement)
            still = still.long().cumprod(-1).bool()
            cache.settle(step + 1)
            settled = torch.cat((settled[:, :done], still), dim=1)
            self.stats.prefill_core_passes += 1
            counts = still.sum(-1).tolist()
            leaving = min(counts)
            alike = alike and leaving == max(counts)
            memory = {key: kept[:, leaving:] for key, kept in refinement.remembered.items()}
            done += leaving
            if done == positions.shape[1]:
                break
        cache.place(positions, start=start, extent=extent)
        cache.columns += positions.shape[1]
        return model.decode(s, positions, cache, logits_to_keep=1)

    def converged(self, refinement: Refinement) -> torch.Tensor:
        """What the exit criterion says, bool [live rows, width].

        Raises:
            ValueError: a criterion of the caller's returned something else.
        """
        verdict = self.criterion(refinement)
        if verdict.dtype != torch.bool or verdict.shape != refinement.positions.shape:
            raise ValueError(
                f"{type(self.criterion).__name__} returned {verdict.dtype} {tuple(verdict.shape)}: an exit criterion "
                f"returns bool {tuple(refinement.positions.shape)}, one verdict a position."
            )
        return verdict

    def exit_bits(self, refinement: Refinement) -> list[torch.Tensor]:
        """The criterion's values as integers for the trace, int64 [live rows, width]; none where it set none.

        Raises:
            ValueError: a criterion of the caller's set something else.
        """
        values = refinement.exit_values
        if self.trace is None or values is None:
            return []
        if values.shape != refinement.positions.shape:
            raise ValueError(
                f"{type(self.criterion).__name__} set exit_values of shape {tuple(values.shape)}: "
                f"{tuple(refinement.positions.shape)} is needed, one value a position."
            )
        return [as_bits(values)]

    def observe_wave(
        self, wave: Wavefront, core_passes: int, predictions: list[list[int | None]], bits: list[list[list[int]]]
    ) -> list[WaveTick]:
        """What the running tick did to every row, with `exit_bits` on the host; nothing without a trace."""
        if self.trace is None:
            return []
        states = wave.states.to("cpu", torch.float32) if self.keeps_latents else None
        return [
            self.observe(
                row,
                wave.fronts[row],
                core_passes,
                tokens,
                [steps + core_passes for steps in wave.steps[row]],
                predictions[row][: len(tokens)],
                from_bits(bits[0][row][: len(tokens)]) if bits else None,
                None if states is None else states[row, : len(tokens)],
            )
            for row, tokens in enumerate(wave.tokens)
            if tokens
        ]
