"""Config files without a `model_type`, whose `_class_name` says which family they are of.

`AutoConfig` refuses them before it looks at any registered class, so what it reads has to say more:
`PreTrainedConfig.get_config_dict`, by which every config.json is read, adds the `model_type`. No other file is affected.
"""

from functools import wraps
from types import ModuleType
from typing import Any

from .families import CLASS_NAMES
from .lazy_registration import when_imported

CONFIGURATION = "transformers.configuration_utils"
"""The module of `PreTrainedConfig`."""


def recognise_class_names() -> None:
    """Let `AutoConfig` find the families of `CLASS_NAMES`, now or when transformers is imported."""
    when_imported(CONFIGURATION, extend)


def extend(module: ModuleType) -> None:
    """Wrap `PreTrainedConfig.get_config_dict`."""
    base = module.PreTrainedConfig
    read = base.get_config_dict.__func__

    @wraps(read)
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        values, unused = read(cls, *args, **kwargs)
        if "model_type" not in values and values.get("_class_name") in CLASS_NAMES:
            values["model_type"] = CLASS_NAMES[values["_class_name"]]
        return values, unused

    base.get_config_dict = classmethod(get_config_dict)
