"""Autoregression in ticks: one token of every row, at full depth."""

from ..settings.autoregressive import AutoregressiveConfig
from .position import Position
from .prompt import PromptReader
from .row import Row
from .sampler import TickingSampler
from .wave import Wave


class TokenByToken(TickingSampler):
    """`sampler="autoregressive"` for rows that join and leave: a tick gives each row its next token.

    The text is that of `generate(sampler="autoregressive")`, where transformers' own loop decodes.
    """

    config_class = AutoregressiveConfig
    is_lossless = True
    config: AutoregressiveConfig

    def read(self, rows, first_seat):
        reader = PromptReader(self.model, self.cache, self.config, self.stats, self.device, self.chunk)
        logits = yield from reader.read(rows, first_seat)
        return self.first_tokens(rows, logits)

    def begin(self, row: Row) -> None:
        row.wave = [Position(row.ids[-1])]

    def tick(self, rows: list[Row]) -> None:
        model, steps = self.model, self.config.num_steps
        wave = Wave(rows, self.device)
        at = self.cache.place_rows(wave.positions, wave.seats, wave.widths, wave.extents, wave.start)
        e = model.embed(wave.ids, at)
        state = model.initialize_state(e, wave.positions, wave.seeds, self.config.state_scale)
        for depth in range(steps):
            state = model.recur(state, e, at, depth)
        # The cache may have more slots than recurrences, as after a prompt.
        self.cache.settle(at, steps)
        logits = model.decode(state, at)
        predictions, scores = wave.choose(logits)
        self.stats.ticks += 1
        self.stats.core_passes += steps
        self.stats.positions_refined += steps * len(wave)
        for seat, (row, token) in enumerate(zip(rows, predictions[0].tolist(), strict=True)):
            token = row.commit(token, logits[0, seat], scores[0, seat])
            if not row.has_ended:
                row.wave = [Position(token)]
