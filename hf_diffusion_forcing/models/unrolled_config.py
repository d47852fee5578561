"""What the configs of all families share: the settings of `forward()` in training, and their checks."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class UnrolledConfig(PreTrainedConfig):
    """A family's config inherits from it.

    Args:
        training_depth: recurrences of a training step when `num_steps` is not given; None means the family's own, which
            may be random.
        state_seed: the seed of every row's initial state in `forward()` when `seeds` is not given; None draws one from
            torch's global generator. `generate()` has a `seed` of its own.

    Raises:
        ValueError: a setting is impossible; the message has its name and value.
    """

    training_depth: int | None = None
    state_seed: int | None = None

    @property
    def trained_recurrences(self) -> int | None:
        """The depth of every training example, beyond which a model gets worse; None if depths were random."""
        return None

    def __post_init__(self, **kwargs):
        # Trainers read it on every config. An instance's own, because transformers writes into it.
        self.auto_map = kwargs.pop("auto_map", None) or {}
        self.validate_training()  # here it raises a plain ValueError; `@strict` would wrap it
        super().__post_init__(**kwargs)

    def validate_training(self):
        """Part of `@strict` validation: refuse impossible settings of `forward()` in training."""
        if self.training_depth is not None and self.training_depth < 1:
            raise ValueError(f"training_depth={self.training_depth} must be at least 1, or None.")
        if self.state_seed is not None and not -(2**63) <= self.state_seed < 2**63:
            raise ValueError(f"state_seed={self.state_seed} must fit into 64 bits.")

    def to_dict(self) -> dict[str, Any]:
        """transformers' own, without an `auto_map` that names nothing."""
        values = super().to_dict()
        if not values.get("auto_map"):
            values.pop("auto_map", None)
        return values
