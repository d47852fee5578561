"""The cache under both its names: `past_key_values`, which transformers 5.24 renames to `cache`."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch  # noqa: F401  # torch.compile of 2.6 looks it up in this module when it goes on after a graph break
from transformers import GenerationMixin
from transformers.utils import ModelOutput
from transformers.utils.deprecation import deprecate_kwarg

RENAMED = "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters

CACHE = "cache" if RENAMED else "past_key_values"
"""The name of the cache inside transformers: among the arguments `generate()` hands on, and as a field of outputs."""

OLD_NAME, NEW_NAME = "past_key_values", "cache"

Function = TypeVar("Function", bound=Callable)


def _rename(arguments: dict, given: str, wanted: str) -> None:
    """Move the argument `given` to `wanted`, without a word: both names are right where this is used."""
    if (value := arguments.pop(given, None)) is not None:
        if arguments.get(wanted) is not None:
            raise ValueError(f"{given} and {wanted} are two names of one argument and both were passed: leave out one.")
        arguments[wanted] = value


def takes_cache(forward: Function) -> Function:
    """Let a method that has an argument `cache` be called with `past_key_values=` as well.

    From 5.24 on that name is deprecated, and this is transformers' own decorator, with its warning. In 5.23 it is the
    name transformers uses and looks for in the signature: nothing is said there.
    """
    if RENAMED:
        # The version is the one transformers' own models name.
        return deprecate_kwarg(OLD_NAME, version="5.40.0", new_name=NEW_NAME)(forward)

    @wraps(forward)
    def renaming(*args, **kwargs):
        _rename(kwargs, OLD_NAME, NEW_NAME)
        return forward(*args, **kwargs)

    signature = inspect.signature(forward)
    # accelerate's unwrap_model() would go on unwrapping to a forward that does not know the name.
    del renaming.__wrapped__
    renaming.__signature__ = signature.replace(
        parameters=[
            parameter.replace(name=OLD_NAME) if name == NEW_NAME else parameter
            for name, parameter in signature.parameters.items()
        ]
    )
    return renaming


if RENAMED:

    class PreparedInputs(dict):
        """Inputs of a step of `generate()`, whose cache is found under its old name, too: PEFT looks for it there, and
        would put a soft prompt before every token otherwise."""

        def get(self, name, default=None):
            return super().get(NEW_NAME if name == OLD_NAME else name, default)

        def __missing__(self, name):
            if name == OLD_NAME and NEW_NAME in self:
                return self[NEW_NAME]
            raise KeyError(name)

    class CacheGenerationMixin(GenerationMixin):
        """`GenerationMixin` whose prepared inputs have the cache under its old name, too."""

        @wraps(GenerationMixin.prepare_inputs_for_generation)
        def prepare_inputs_for_generation(self, *args, **kwargs):
            return PreparedInputs(super().prepare_inputs_for_generation(*args, **kwargs))

    class CacheOutput:
        """For outputs: the cache under both names, which `ModelOutput` sees to itself."""
else:

    class CacheGenerationMixin(GenerationMixin):
        """`GenerationMixin` of 5.23 with the cache under its new name, too."""

        @wraps(GenerationMixin.generate)
        def generate(self, *args, **kwargs):
            _rename(kwargs, NEW_NAME, OLD_NAME)
            output = super().generate(*args, **kwargs)
            if isinstance(output, ModelOutput) and not hasattr(output, NEW_NAME):
                # An attribute besides the fields.
                output.cache = output.get(OLD_NAME)
            return output

    class CacheOutput:
        """For outputs: the cache under its new name, too."""

        @property
        def cache(self):
            return self.past_key_values
