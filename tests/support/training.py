"""Arguments of a training of a few steps."""

from typing import Any

from transformers import TrainingArguments


def few_steps(folder, kind: type = TrainingArguments, **changes) -> Any:
    """Arguments for two steps over two rows each, on the CPU, which report and save nothing.

    Args:
        kind: `TrainingArguments`, or a subclass of it.
        changes: what is different.
    """
    defaults = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "bf16": False}
    return kind(output_dir=str(folder), **defaults | {"save_strategy": "no", "logging_steps": 1} | changes)
