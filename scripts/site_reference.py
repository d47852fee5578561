"""A griffe extension that teaches the API reference our docstring conventions (see .mkdocs.yml)."""

import re
from collections.abc import Iterator

from griffe import Attribute, Class, Extension, Function, Module, Object, Parameter, ParameterKind, Parameters

SEVERAL = re.compile(r"^ {4}((?:\w+, )+\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class DocstringConventions(Extension):
    """Expands entries for several names, and adds the constructors of configs.

    An entry `a, b: text` in a section becomes one entry per name. transformers turns every subclass of
    `PreTrainedConfig` into a dataclass at run time, which static analysis cannot see: its annotated fields are its
    keywords.
    """

    def on_instance(self, *, obj: Object, **kwargs) -> None:
        """Split entries for several names."""
        if obj.docstring is not None:
            obj.docstring.value = SEVERAL.sub(
                lambda entry: "\n".join(f"    {name}: {entry[2]}" for name in entry[1].split(", ")),
                obj.docstring.value,
            )

    def on_package(self, *, pkg: Module, **kwargs) -> None:
        """Add the constructors that transformers generates for configs."""
        for cls in classes(pkg):
            lineage = [*reversed(cls.mro()), cls]
            if any(str(base).endswith("PreTrainedConfig") for each in lineage for base in each.bases):
                add_constructor(cls, lineage)


def classes(module: Module) -> Iterator[Class]:
    """The classes that a package defines."""
    for name, member in module.members.items():
        if member.is_alias:
            continue
        if member.is_class:
            yield member
        elif member.is_module and name != "__main__":
            yield from classes(member)


def add_constructor(cls: Class, lineage: list[Class]) -> None:
    """Make the annotated fields of a class and of those it inherits from (first) its keywords."""
    fields = {
        name: each
        for ancestor in lineage
        for name, each in ancestor.members.items()
        if isinstance(each, Attribute) and each.annotation is not None
    }
    keywords = [
        Parameter(name, annotation=each.annotation, kind=ParameterKind.keyword_only, default=each.value)
        for name, each in fields.items()
    ]
    itself = Parameter("self", kind=ParameterKind.positional_or_keyword)
    cls.set_member("__init__", Function("__init__", parameters=Parameters(itself, *keywords)))
