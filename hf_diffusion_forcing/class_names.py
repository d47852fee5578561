"""Config files without a `model_type`, whose `_class_name` says which family they are of."""

from functools import wraps
from typing import Any

from .families import CLASS_NAMES


def recognise_class_names(config_class: type) -> None:
    """Let `AutoConfig` find the families of `CLASS_NAMES`.

    It refuses such a file before it looks at any registered class, so what it reads has to say more:
    `PreTrainedConfig.get_config_dict`, by which it reads config.json, adds the `model_type`. No other file is affected.

    Args:
        config_class: `PreTrainedConfig`.
    """
    read = config_class.get_config_dict.__func__

    @wraps(read)
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        values, unused = read(cls, *args, **kwargs)
        if "model_type" not in values and values.get("_class_name") in CLASS_NAMES:
            values["model_type"] = CLASS_NAMES[values["_class_name"]]
        return values, unused

    config_class.get_config_dict = classmethod(get_config_dict)
