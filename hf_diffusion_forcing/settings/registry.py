"""Hooks by name, so that settings can be saved as plain JSON and read back."""

import dataclasses
import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol, TypeAlias

from .validation import nearest


class Hook(Protocol):
    """All that settings need of a criterion, a processor or a draft source: its description in plain values."""

    def to_dict(self) -> dict[str, Any]: ...


HookSpec: TypeAlias = str | dict[str, Any] | Hook
"""How settings name a hook: its name, a dict {"name": ..., **parameters}, or an instance."""


class Registry(MutableMapping[str, type]):
    """The dataclasses of one family of hooks, by `name`.

    The first look-up imports the package's own hooks; settings can be read without them.

    Args:
        setting: the family's name in settings and errors. `register_{setting}` is its public decorator, and the
            function `{setting}` in `home` makes a hook from settings.
        home: the module that defines the family; importing its package registers the package's own hooks.
        base: the name of the family's base class in `home`.
    """

    def __init__(self, setting: str, home: str, base: str):
        self.setting, self.home, self._base = setting, home, base
        self._classes: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        importlib.import_module(self.home)
        return self._classes[name]

    def __setitem__(self, name: str, hook_class: type) -> None:
        self._classes[name] = hook_class

    def __delitem__(self, name: str) -> None:
        importlib.import_module(self.home)
        del self._classes[name]

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self.home)
        return iter(self._classes)

    def __len__(self) -> int:
        importlib.import_module(self.home)
        return len(self._classes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.setting!r}: {', '.join(sorted(self))})"

    @property
    def base(self) -> type:
        """The family's base class."""
        return getattr(importlib.import_module(self.home), self._base)

    def make(self, *spec: Any) -> Any:
        """A hook from any form that settings allow, including lists and combinations."""
        return getattr(importlib.import_module(self.home), self.setting)(*spec)

    def register(self, hook_class: type) -> type:
        """Add a class under its `name`; returns it.

        Raises:
            TypeError: the class is not a dataclass of this family, or has no `name`.
            ValueError: the name belongs to another class. (Redefining the same class, as in a notebook, replaces it.)
        """
        if not (isinstance(hook_class, type) and issubclass(hook_class, self.base)):
            raise TypeError(f"{hook_class!r} is not a subclass of {self.base.__name__}.")
        if "__dataclass_fields__" not in vars(hook_class):
            raise TypeError(
                f"{hook_class.__name__} is not a dataclass, so its parameters cannot be saved: put "
                f"@dataclass between @register_{self.setting} and the class."
            )
        name = getattr(hook_class, "name", None)
        if not (isinstance(name, str) and name):
            raise TypeError(f'{hook_class.__name__} has no name: give it `name: ClassVar[str] = "..."`.')
        known = self._classes.get(name, hook_class)
        if (known.__module__, known.__qualname__) != (hook_class.__module__, hook_class.__qualname__):
            raise ValueError(f"name={name!r} of {hook_class.__name__} is taken by {known.__qualname__}: use another.")
        self._classes[name] = hook_class
        return hook_class

    def build(self, spec: Any) -> Any:
        """A hook from its name, a dict {"name": ..., **parameters}, or an instance (returned unchanged).

        Raises:
            TypeError: `spec` is none of these, or a parameter has the wrong type.
            ValueError: a name or parameter is unknown (suggests the nearest), missing or out of range.
        """
        if isinstance(spec, base := self.base):
            return spec
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, dict):
            raise TypeError(
                f"{self.setting}={spec!r} must be a name, a dict with a 'name', or an instance of {base.__name__}."
            )
        parameters = dict(spec)
        name = parameters.pop("name", None)
        if name is None:
            raise ValueError(f"{self.setting}={spec!r} has no 'name'; known: {', '.join(sorted(self))}.")
        if not isinstance(name, str) or name not in self:
            raise ValueError(f"{self.setting}={name!r} is unknown{nearest(str(name), tuple(self))}.")
        fields = [field for field in dataclasses.fields(self[name]) if field.init]
        known = tuple(field.name for field in fields)
        for key in parameters:
            if key not in known:
                hint = nearest(str(key), known) if known else "; it has none"
                raise ValueError(f"{self.setting} {name!r} has no parameter {key!r}{hint}.")
        for field in fields:
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in parameters:
                raise ValueError(f"{self.setting} {name!r} needs {field.name!r}: pass it in the dict with its 'name'.")
        return self[name](**parameters)

    def to_dict(self, hook: Any) -> dict[str, Any]:
        """The dict {"name": ..., **parameters} from which `build` makes an equal hook.

        Raises:
            TypeError: the hook's class is not registered.
        """
        hook_class = type(hook)
        if self.get(getattr(hook_class, "name", None)) is not hook_class:
            raise TypeError(
                f"{hook_class.__name__} is not registered, so it cannot be saved with settings: give it a `name` and "
                f"put @register_{self.setting} above its @dataclass, or pass an instance to generate() instead."
            )
        parameters = {field.name: getattr(hook, field.name) for field in dataclasses.fields(hook) if field.init}
        return {"name": hook_class.name} | parameters


EXIT_CRITERIA = Registry("exit_criterion", "hf_diffusion_forcing.hooks.exit_criterion", "ExitCriterion")
"""The registered exit criteria."""

LATENT_PROCESSORS = Registry("latent_processor", "hf_diffusion_forcing.hooks.latent_processor", "LatentProcessor")
"""The registered latent processors."""

DRAFT_SOURCES = Registry("draft_source", "hf_diffusion_forcing.hooks.draft_source", "DraftSource")
"""The registered draft sources."""
