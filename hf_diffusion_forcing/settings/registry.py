"""Hooks by name, so that settings can be written as plain JSON and read back."""

import dataclasses
from typing import Any

from .validation import nearest


class Registry(dict[str, type]):
    """Dataclasses of one family of hooks, by their `name`.

    Args:
        base: the family's base class.
        setting: what the family is called in settings and errors; `register_{setting}` is its public decorator.
    """

    def __init__(self, base: type, setting: str):
        super().__init__()
        self.base, self.setting = base, setting

    def register(self, hook_class: type) -> type:
        """Add a class under its `name`; returns it.

        Raises:
            TypeError: not a dataclass of this family, or without a `name`.
            ValueError: the name belongs to another class. (Defining the same class anew replaces it, as notebooks do.)
        """
        if not (isinstance(hook_class, type) and issubclass(hook_class, self.base)):
            raise TypeError(f"{hook_class!r} is not a subclass of {self.base.__name__}.")
        if "__dataclass_fields__" not in vars(hook_class):
            raise TypeError(
                f"{hook_class.__name__} is not a dataclass, so its parameters cannot be written down: put "
                f"@dataclass between @register_{self.setting} and the class."
            )
        name = getattr(hook_class, "name", None)
        if not (isinstance(name, str) and name):
            raise TypeError(f'{hook_class.__name__} has no name: give it `name: ClassVar[str] = "..."`.')
        known = self.get(name, hook_class)
        if (known.__module__, known.__qualname__) != (hook_class.__module__, hook_class.__qualname__):
            raise ValueError(f"name={name!r} of {hook_class.__name__} belongs to {known.__qualname__}: use another.")
        self[name] = hook_class
        return hook_class

    def build(self, spec: Any) -> Any:
        """A hook from its name, from a dict {"name": ..., **parameters}, or from an instance (returned as it is).

        Raises:
            TypeError: none of these, or a parameter of the wrong type.
            ValueError: an unknown name or parameter (names the nearest), a missing one, or one out of range.
        """
        if isinstance(spec, self.base):
            return spec
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, dict):
            raise TypeError(
                f"{self.setting}={spec!r} must be a name, a dict with a 'name', or an instance of {self.base.__name__}."
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
        """What `build` makes an equal hook from: {"name": ..., **parameters}.

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
