"""How a row of a dataset becomes a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..evaluation.task import template_columns
from ..settings.validation import nearest


@dataclass(frozen=True)
class Prompts:
    """The source of the prompts: one of a column, a template and a column of chats; the column "prompt" if none is
    given.

    Attributes:
        column: its texts are the prompts.
        template: a text with column names in braces.
        chat_column: lists of messages, each with `role` and `content`, or texts, each the one message of a user. The
            tokenizer's chat template makes the prompt.

    Raises:
        ValueError: several are given, or the template is none.
    """

    column: str | None = None
    template: str | None = None
    chat_column: str | None = None

    def __post_init__(self):
        given = [name for name in ("column", "template", "chat_column") if getattr(self, name) is not None]
        if len(given) > 1:
            options = " and ".join({"column": "prompt_column", "template": "prompt_template"}.get(n, n) for n in given)
            raise ValueError(f"The prompts have several sources, {options}: choose one.")
        if not given:
            object.__setattr__(self, "column", "prompt")
        if self.template is not None:
            template_columns(self.template)

    @property
    def columns(self) -> list[str]:
        """The columns that the prompts are made of."""
        return template_columns(self.template) if self.template is not None else [self.column or self.chat_column]

    def check(self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """ValueError if a column does not exist, or the tokenizer has no chat template for chats."""
        for column in self.columns:
            if column not in names:
                raise ValueError(
                    f"The dataset has no column {column!r}{nearest(column, list(names))}: name the column of the "
                    "prompts with prompt_column, prompt_template or chat_column (--prompt-column, ...). It has "
                    f"{', '.join(names)}."
                )
        if self.chat_column is not None and not tokenizer.chat_template:
            raise ValueError(f"chat_column={self.chat_column!r} needs a chat template, and the tokenizer has none.")

    def describe(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What all prompts depend on, as JSON values; reads the columns once."""
        digest = hashlib.sha256()
        for row in rows.select_columns(self.columns):
            digest.update(json.dumps([row[column] for column in self.columns], default=str).encode() + b"\n")
        return {
            "rows": len(rows),
            "content": digest.hexdigest()[:16],
            "prompt_column": self.column,
            "prompt_template": self.template,
            "chat_column": self.chat_column,
            "chat_template": self.chat_column and tokenizer.chat_template,
        }

    def inputs(self, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """The tokenizer's output for a row, as lists of one prompt: `input_ids`, and what else `generate()` takes.

        Raises:
            ValueError: a value is missing, the prompt is empty, or the chat template refuses the messages.
        """
        for column in self.columns:
            if row[column] is None:
                raise ValueError(f"Column {column!r} has no value.")
        if self.chat_column is not None:
            text = chat_text(row[self.chat_column], self.chat_column, tokenizer)
        elif self.template is not None:
            text = self.template.format(**{column: row[column] for column in self.columns})
        else:
            text = str(row[self.column])
        if not text.strip():
            raise ValueError("The prompt is empty.")
        # A chat template writes the special tokens itself.
        inputs = tokenizer(text, add_special_tokens=self.chat_column is None, verbose=False)
        return {name: values for name, values in inputs.items() if name != "attention_mask"}


def chat_text(messages: Any, column: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt of a chat.

    Raises:
        ValueError: these are no messages, or the template refuses them.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not all(isinstance(each, dict) and each.get("role") for each in messages):
        raise ValueError(f"Column {column!r} has no list of messages, each with a role and content: {messages!r:.100}")
    # Where the messages of a dataset have different keys, all of them have all keys.
    messages = [{key: value for key, value in each.items() if value is not None} for each in messages]
    if not messages:
        raise ValueError(f"Column {column!r} has no messages.")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(f"The chat template refuses column {column!r}: {error}") from error
