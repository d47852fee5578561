"""Settings of diffusion forcing."""

from dataclasses import dataclass, field
from typing import ClassVar

from .early_exit import EarlyExitConfig
from .guessing import GuessingConfig
from .registry import LATENT_PROCESSORS, Hook, HookSpec
from .validation import check_flag, check_integer, check_number, nearest

NOISE_SCHEDULES = ("constant", "linear", "square_root", "dampened")
"""The values of `noise_schedule`; `StateNoise` explains them."""

WAVEFRONT = 32
"""The default wavefront."""


@dataclass(kw_only=True)
class DiffusionForcingConfig(EarlyExitConfig, GuessingConfig):
    """Settings of `sampler="diffusion_forcing"` (arXiv 2510.14961, Algorithm 1).

    Args:
        wavefront: most positions refined at once. "auto" measures passes on this machine and the recurrences that
            positions need, chooses the width (and inner_recurrence, unless given) or one position at a time, and
            chooses again while decoding.
        headway: new positions a tick may add; guesses (`draft_tokens`) may add more.
        inner_recurrence: core passes in a tick (r'); None is 4, or the token's budget if that is less ("auto"
            chooses it).
        max_steps: recurrences after which the front position freezes even if it has not converged; `num_steps` when
            None. Ticks are whole: the limit is rounded down to a multiple of `inner_recurrence`.
        embedding_momentum: eta, the share of a position's earlier injected embedding kept in a tick.
        state_noise: beta, the share of fresh noise mixed into states at the start of a tick.
        noise_schedule: how beta falls with a position's recurrences: "constant", "linear", "square_root", "dampened".
        continuous_compute: start a new position from its neighbour's state instead of from noise.
        latent_processors: additional processors, applied after those of the fields above: names, dicts
            {"name": ..., **parameters} or instances of `LatentProcessor`.
    """

    sampler: ClassVar[str] = "diffusion_forcing"

    wavefront: int | str = WAVEFRONT
    headway: int = 1
    draft_tokens: int = 1
    inner_recurrence: int | None = None
    max_steps: int | None = None
    embedding_momentum: float = 0.0
    state_noise: float = 0.0
    noise_schedule: str = "constant"
    continuous_compute: bool = False
    latent_processors: list[HookSpec] = field(default_factory=list)

    def validate(self) -> None:
        super().validate()
        if self.wavefront != "auto":
            if isinstance(self.wavefront, str):
                raise ValueError(f"wavefront={self.wavefront!r} is unknown: use 'auto' or a number of positions.")
            check_integer("wavefront", self.wavefront, 1)
        elif self.compile:
            raise ValueError(
                "wavefront='auto' is not possible with compile=True: it times passes that are not compiled. Pass "
                "wavefront=, or leave compile out."
            )
        check_integer("headway", self.headway, 1)
        if self.wavefront == "auto" and self.draft_tokens != 1:
            raise ValueError(
                f"draft_tokens={self.draft_tokens} is not possible with wavefront='auto', which assumes that tokens "
                "enter one by one: pass wavefront=, or leave draft_tokens out."
            )
        check_number("embedding_momentum", self.embedding_momentum, 1.0)
        check_number("state_noise", self.state_noise, 1.0)
        check_flag("continuous_compute", self.continuous_compute)
        if self.continuous_compute and self.learned_start:
            raise ValueError(
                "continuous_compute=True and learned_start=True both give new positions their states: leave out one of "
                "them."
            )
        if not isinstance(self.latent_processors, (list, tuple)):
            raise TypeError(f"latent_processors={self.latent_processors!r} must be a list.")
        if self.noise_schedule not in NOISE_SCHEDULES:
            hint = nearest(str(self.noise_schedule), NOISE_SCHEDULES)
            raise ValueError(f"noise_schedule={self.noise_schedule!r} is unknown{hint}.")
        for name in ("inner_recurrence", "max_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        self.processors()

    def check_draft_tokens(self) -> None:
        if self.draft_tokens == "auto":
            raise ValueError(
                f"draft_tokens='auto' is not possible with sampler={self.sampler!r}: pass a number of positions, or "
                "use sampler='speculative_wavefront'."
            )
        super().check_draft_tokens()

    def check_depths(self) -> None:
        for name in ("num_steps", "max_steps"):
            budget = getattr(self, name)
            if None not in (budget, self.inner_recurrence) and self.inner_recurrence > budget:
                raise ValueError(
                    f"inner_recurrence={self.inner_recurrence} is more than {name}={budget}: one tick would exceed the "
                    f"budget of a token. Use inner_recurrence <= {budget}."
                )

    def processors(self) -> list[Hook]:
        """The latent processors of these settings as a `LatentProcessorList`; those made by fields come first.

        Raises:
            ValueError: an unknown schedule, name or parameter.
        """
        specs: list[HookSpec] = []
        if self.embedding_momentum > 0:
            specs.append({"name": "embedding_momentum", "eta": self.embedding_momentum})
        if self.continuous_compute:
            specs.append("continuous_compute")
        if self.state_noise > 0:
            specs.append({"name": "state_noise", "beta": self.state_noise, "schedule": self.noise_schedule})
        processors = LATENT_PROCESSORS.make([*specs, *self.latent_processors])
        # Two of a class would share one memory key and draw the same noise.
        classes = [type(processor) for processor in processors if type(processor) in LATENT_PROCESSORS.values()]
        for each in classes:
            if classes.count(each) > 1:
                raise ValueError(
                    f"latent_processors has {each.name!r} twice, counting those that embedding_momentum, state_noise "
                    "and continuous_compute add: use it once."
                )
        return processors

    def fill_depths(self, mean_recurrence: int) -> None:
        super().fill_depths(mean_recurrence)
        self.max_steps = self.max_steps or self.num_steps
        if self.inner_recurrence is None and self.wavefront != "auto":
            self.inner_recurrence = min(4, self.num_steps, self.max_steps)

    @property
    def deepest(self) -> int:
        return max(super().deepest, self.max_steps)

    @property
    def widest(self) -> int:
        # "auto" seldom chooses more than the default.
        return self.wavefront if isinstance(self.wavefront, int) else WAVEFRONT

    @property
    def follows_prompt(self) -> bool:
        return self.wavefront == "auto"
