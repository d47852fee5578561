"""A warning for depths far beyond those that a model was trained for."""

from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

FAR = 2
"""A depth is far beyond training if it is more than this many times the trained one."""


def warn_beyond_training(config: Any, num_steps: int) -> None:
    """Say once that a depth is far beyond the model's trained one.

    Args:
        config: of the model; its `trained_recurrences`, if it has any, is the depth of every training example. Models
            that are trained with random depths, like Huginn, have none: more recurrences do not harm them.
        num_steps: recurrences of a token.
    """
    trained = getattr(config, "trained_recurrences", None)
    if trained is not None and num_steps > FAR * trained:
        name = config.attribute_map.get("mean_recurrence", "mean_recurrence")
        logger.warning_once(
            f"num_steps={num_steps} is far beyond the {trained} recurrences ({name}) that this {config.model_type} "
            f"model was trained with: expect worse text, not better. Leave num_steps out, or use at most {trained}."
        )
