"""The help of a setting: what its dataclass's docstring says of it."""

import inspect
import re

ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def field_help(config_class: type, name: str) -> str:
    """What the docstring of a settings class, or of one it inherits from, says of a field under `Args:`.

    Raises:
        LookupError: it says nothing of it.
    """
    for each in config_class.__mro__:
        _, _, arguments = inspect.cleandoc(each.__doc__ or "").partition("Args:\n")
        for entry in ENTRY.finditer(arguments):
            if name in entry["names"].split(", "):
                return " ".join(entry["text"].split())
    raise LookupError(f"{config_class.__name__} documents no field {name!r}.")
