"""What this package needs of transformers beyond its documented interface, and where its versions differ.

`NAMES` says which names were read, in which versions, and why they are needed: the list to go through when a new
version of transformers comes out. `missing()` holds it against the installed one. The rest of this module is the
differences themselves, so that other modules are written once, for the newest version.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TypeVar

import transformers
from transformers import GenerationMixin
from transformers.utils import ModelOutput
from transformers.utils.deprecation import deprecate_kwarg

VERSIONS = ("5.23", "5.24")
"""The minor versions of transformers this package was tried with, the oldest first. setup.cfg allows no others."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of transformers that this package relies on.

    Attributes:
        path: `module:attribute`, the attribute dotted where it is inside a class. `(argument)` after it is an argument
            of a function; `#attribute` after a class is one that its instances have once a method has set it.
        read_in: the minor versions of transformers in which it was read. In others of `VERSIONS` it does not exist.
        why: what it is needed for.
    """

    path: str
    read_in: tuple[str, ...]
    why: str

    def exists(self) -> bool:
        """Whether the installed transformers has it."""
        path, _, argument = self.path.removesuffix(")").partition("(")
        path, _, of_instances = path.partition("#")
        module, _, attributes = path.partition(":")
        try:
            found = import_module(module)
            for attribute in attributes.split("."):
                found = getattr(found, attribute)
        except (ImportError, AttributeError):
            return False
        if of_instances:
            functions = (f for base in found.__mro__ for f in vars(base).values() if inspect.isfunction(f))
            return any(of_instances in inspect.unwrap(f).__code__.co_names for f in functions)
        return not argument or argument in inspect.signature(found).parameters


_HANDED_ON = "the name generate() keeps the cache under, and passes it to forward() by"
_OUTPUT = "the field of the cache in what generate() and forward() return"
_MODELS = "/v1/models answers with it; a served model overrides it"

NAMES: tuple[Name, ...] = (
    Name("transformers:GenerationMixin.prepare_inputs_for_generation(past_key_values)", ("5.23",), _HANDED_ON),
    Name("transformers:GenerationMixin.prepare_inputs_for_generation(cache)", ("5.24",), _HANDED_ON),
    Name("transformers.generation:GenerateDecoderOnlyOutput.past_key_values", VERSIONS, _OUTPUT),
    Name("transformers.generation:GenerateDecoderOnlyOutput.cache", ("5.24",), _OUTPUT),
    Name("transformers.modeling_outputs:BaseModelOutputWithPast.past_key_values", VERSIONS, _OUTPUT),
    Name("transformers.modeling_outputs:BaseModelOutputWithPast.cache", ("5.24",), _OUTPUT),
    Name("transformers.modeling_outputs:CausalLMOutputWithPast.past_key_values", VERSIONS, _OUTPUT),
    Name("transformers.modeling_outputs:CausalLMOutputWithPast.cache", ("5.24",), _OUTPUT),
    Name(
        "transformers.utils.deprecation:deprecate_kwarg(new_name)",
        VERSIONS,
        "5.24 renames its own arguments by it, and so are ours",
    ),
    Name(
        "transformers.cache_utils:Cache.is_linear",
        VERSIONS,
        "generate() asks since 5.24 whether all layers are linear; of a cache without layers, as ours, all are",
    ),
    Name(
        "transformers.cache_utils:Cache.is_croppable",
        VERSIONS,
        "assisted generation asks since 5.24 whether all layers can be cropped",
    ),
    Name(
        "transformers:PrefixConstrainedLogitsProcessor#_num_beams",
        VERSIONS,
        "how many rows continue one prompt; since 5.24 those of num_return_sequences are counted, too",
    ),
    Name(
        "transformers:UnbatchedClassifierFreeGuidanceLogitsProcessor#unconditional_context",
        VERSIONS,
        "guidance is given a cache of this package's there, under the name of the version",
    ),
    Name("transformers.cli.serving.model_manager:ModelManager.get_gen_models", ("5.23",), _MODELS),
    Name("transformers.cli.serving.model_manager:ModelManager.list_models", ("5.24",), _MODELS),
)


def installed() -> str:
    """The minor version of the installed transformers, such as "5.24"."""
    return ".".join(transformers.__version__.split(".")[:2])


def missing() -> list[str]:
    """What `NAMES` says that is not so in the installed transformers, and what each name is needed for."""
    problems = []
    for name in NAMES:
        expected = installed() in name.read_in
        if installed() in VERSIONS and name.exists() != expected:
            problems.append(f"{name.path} {'is gone' if expected else 'is there'}: {name.why}")
    return problems


# --- past_key_values, which 5.24 renames to cache ---

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
    renaming.__signature__ = signature.replace(
        parameters=[
            parameter.replace(name=OLD_NAME) if name == NEW_NAME else parameter
            for name, parameter in signature.parameters.items()
        ]
    )
    return renaming


if RENAMED:
    CacheGenerationMixin = GenerationMixin

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
