"""Settings of the samplers that stop at convergence."""

from dataclasses import dataclass

from .compiled import CompilableConfig
from .registry import EXIT_CRITERIA, Hook, HookSpec
from .validation import check_flag, check_integer, check_number


@dataclass(kw_only=True)
class EarlyExitConfig(CompilableConfig):
    """Settings of the samplers that stop refining a position once it has converged.

    Args:
        exit_criterion: when a position has converged: a name ("latent_difference", "kl", ...), a dict
            {"name": ..., **parameters}, {"any": [...]} or {"all": [...]} of these, or an `ExitCriterion`.
        exit_threshold: the criterion's threshold; its own default when None (0.03 for "latent_difference").
        prefill_steps: recurrences of the prompt; `num_steps` when None.
        adaptive_prefill: freeze the longest converged prefix of the prompt after each recurrence;
            `prefill_steps` is then the maximum.
        learned_start: start a new position, instead of from noise, from the state that the model's start head
            (`hf-diffusion-forcing fit`) predicts from its injected embedding and the state on its left.
    """

    kv_sharing: str | int = "last"
    exit_criterion: HookSpec | list = "latent_difference"
    exit_threshold: float | None = None
    prefill_steps: int | None = None
    adaptive_prefill: bool = False
    learned_start: bool = False

    def validate(self) -> None:
        super().validate()
        check_flag("adaptive_prefill", self.adaptive_prefill)
        check_flag("learned_start", self.learned_start)
        if self.compile and self.kv_sharing not in ("last", 1):
            raise ValueError(
                f"compile=True is not possible with kv_sharing={self.kv_sharing!r} and sampler={self.sampler!r}, whose "
                "positions are then at slots of their own: use kv_sharing='last', or leave compile out."
            )
        if self.exit_threshold is not None:
            check_number("exit_threshold", self.exit_threshold)
        if self.prefill_steps is not None:
            check_integer("prefill_steps", self.prefill_steps, 1)
        self.criterion()

    def criterion(self) -> Hook:
        """The `ExitCriterion` of these settings.

        Raises:
            ValueError: `exit_threshold` is given but the criterion has no threshold.
        """
        return EXIT_CRITERIA.make(self.exit_criterion, self.exit_threshold)

    def fill_depths(self, mean_recurrence: int) -> None:
        super().fill_depths(mean_recurrence)
        self.prefill_steps = self.prefill_steps or self.num_steps

    @property
    def sees_chunks(self) -> bool:
        # A chunk converges on its own.
        return super().sees_chunks or self.adaptive_prefill

    @property
    def deepest(self) -> int:
        return max(self.num_steps, self.prefill_steps)

    @property
    def prompt_steps(self) -> int:
        return self.prefill_steps
