"""What the API reference needs to understand docstrings: a griffe extension (see .mkdocs.yml)."""

import re

from griffe import Attribute, Class, Extension, Function, Object, Parameter, ParameterKind, Parameters

SEVERAL = re.compile(r"^ {4}((?:\w+, )+\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class DocstringConventions(Extension):
    """Entries that describe several names at once, and the fields of transformers' configs.

    `a, b: text` in a section is an entry for each. transformers makes a dataclass of each subclass of
    `PreTrainedConfig`, where no static reader can see it: its annotated fields are its keywords.
    """

    def on_instance(self, *, obj: Object, **kwargs) -> None:
        """Give each of several names an entry of its own."""
        if obj.docstring is not None:
            obj.docstring.value = SEVERAL.sub(
                lambda entry: "\n".join(f"    {name}: {entry[2]}" for name in entry[1].split(", ")),
                obj.docstring.value,
            )

    def on_class_members(self, *, cls: Class, **kwargs) -> None:
        """Give a config the constructor that transformers makes."""
        if not any(str(base).endswith("PreTrainedConfig") for base in cls.bases):
            return
        fields = [each for each in cls.members.values() if isinstance(each, Attribute) and each.annotation is not None]
        keywords = [
            Parameter(each.name, annotation=each.annotation, kind=ParameterKind.keyword_only, default=each.value)
            for each in fields
        ]
        itself = Parameter("self", kind=ParameterKind.positional_or_keyword)
        cls.set_member("__init__", Function("__init__", parameters=Parameters(itself, *keywords)))
