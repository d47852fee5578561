"""A griffe extension that teaches the API reference our docstring conventions (see .mkdocs.yml)."""

import re

from griffe import Attribute, Class, Extension, Function, Object, Parameter, ParameterKind, Parameters

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

    def on_class_members(self, *, cls: Class, **kwargs) -> None:
        """Add the constructor that transformers generates for a config."""
        if not any(str(base).endswith("PreTrainedConfig") for base in cls.bases):
            return
        fields = [each for each in cls.members.values() if isinstance(each, Attribute) and each.annotation is not None]
        keywords = [
            Parameter(each.name, annotation=each.annotation, kind=ParameterKind.keyword_only, default=each.value)
            for each in fields
        ]
        itself = Parameter("self", kind=ParameterKind.positional_or_keyword)
        cls.set_member("__init__", Function("__init__", parameters=Parameters(itself, *keywords)))
