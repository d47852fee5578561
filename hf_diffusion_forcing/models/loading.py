"""Loading that checks a checkpoint's tensors: none missing, left over or of another shape."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from safetensors import safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..compat import find_file

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Keywords of `from_pretrained` that locate files."""

LANGUAGE_HEAD, CLASSIFIER = r"^lm_head\.", r"^score\."
HEADS = (LANGUAGE_HEAD, CLASSIFIER)
"""Patterns of the tensors of heads. A base model ignores them, and transformers lets its models with a head do so too:
each loads the checkpoints of the others, as far as its own head is there."""

SHOWN = 12
"""The most tensors of one kind that an error lists."""


def checkpoint_file(path: str | os.PathLike, name: str, keywords: dict[str, Any]) -> str | None:
    """The path of a checkpoint's file, downloaded if necessary; None if there is no such file.

    Args:
        path: folder or Hub id.
        keywords: those of `from_pretrained`.
    """
    where = {key: keywords[key] for key in HUB_KEYWORDS if key in keywords}
    return find_file(path, name, **where)


def stored_config(path: str | os.PathLike | None, keywords: dict[str, Any]) -> dict[str, Any] | None:
    """The raw contents of config.json; None if there is none."""
    file = None if path is None else checkpoint_file(path, CONFIG_NAME, keywords)
    if file is None:
        return None
    with open(file, encoding="utf-8") as opened:
        return json.load(opened)


def tensor_names(path: str | os.PathLike | None, keywords: dict[str, Any]) -> set[str] | None:
    """Names of a checkpoint's tensors; None unless they are in safetensors files with the usual names.

    Reads only the file's header, or the index of a sharded checkpoint.
    """
    if keywords.get("state_dict") is not None:
        return set(keywords["state_dict"])
    if path is None or keywords.get("gguf_file") or keywords.get("variant"):
        return None
    if (file := checkpoint_file(path, SAFE_WEIGHTS_NAME, keywords)) is not None:
        with safe_open(file, "pt") as opened:
            return set(opened.keys())
    if (file := checkpoint_file(path, SAFE_WEIGHTS_INDEX_NAME, keywords)) is not None:
        with open(file, encoding="utf-8") as opened:
            return set(json.load(opened)["weight_map"])
    return None


def check_loaded(info: dict[str, Any], mismatched_allowed: bool) -> None:
    """ValueError if tensors are missing, left over or of other shapes; lists what was found and expected.

    Args:
        info: transformers' report of the load (`output_loading_info`).
        mismatched_allowed: accept other shapes (`ignore_mismatched_sizes`).
    """
    problems = []
    if missing := sorted(info["missing_keys"]):
        problems.append(("missing (expected, not found)", missing))
    if unexpected := sorted(info["unexpected_keys"]):
        problems.append(("left over (found, not expected)", unexpected))
    mismatched = [] if mismatched_allowed else sorted(info["mismatched_keys"])
    if mismatched:
        shapes = [f"{name} (found {list(found)}, expected {list(expected)})" for name, found, expected in mismatched]
        problems.append(("of another shape", shapes))
    if not problems:
        return
    lines = []
    for what, names in problems:
        more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
    raise ValueError(
        "The checkpoint's tensors do not fit its config.json. " + ". ".join(lines) + ". "
        "(With output_loading_info=True they are returned instead, and missing ones are initialized at random; with "
        "ignore_mismatched_sizes=True those of another shape are.)"
    )


class CheckedLoading:
    """`from_pretrained` that refuses checkpoints with missing, left-over or misshapen tensors, and corrects stale
    special-token ids of published checkpoints.

    transformers would only warn, and initialize such tensors at random. Put it before `PreTrainedModel` in the bases.
    """

    def correct_special_tokens(self, path: str | os.PathLike | None, keywords: dict[str, Any]) -> None:
        """A hook for a family's corrections after loading.

        Args:
            path: folder or Hub id.
            keywords: those of `from_pretrained`.
        """

    def finish_loading(self) -> None:
        """A hook for checks and settings of the loaded model; loading makes every parameter trainable."""

    def initialized_keys(self, path: str | os.PathLike | None, keywords: dict[str, Any]) -> set[str]:
        """A hook for tensors that a checkpoint may lack; arguments as above."""
        return set()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, output_loading_info=False, ignore_mismatched_sizes=False, **kwargs
    ):
        """transformers' own `from_pretrained`, with checks.

        Raises:
            ValueError: tensors are missing, left over or of other shapes; lists them. With `output_loading_info=True`
                they are returned instead.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            output_loading_info=True,
            # `check_loaded` below raises an error that lists shapes that do not fit; else they are returned.
            ignore_mismatched_sizes=True,
            **kwargs,
        )
        model.correct_special_tokens(pretrained_model_name_or_path, kwargs)
        model.finish_loading()
        if output_loading_info:
            return model, info
        missing = info["missing_keys"] - model.initialized_keys(pretrained_model_name_or_path, kwargs)
        check_loaded(info | {"missing_keys": missing}, ignore_mismatched_sizes)
        return model


class ClassifierLoading:
    """For classifiers: a checkpoint of a language model loads, and its classification head is new.

    transformers itself warns that the head is initialized at random. Put it before `CheckedLoading` in the bases.
    """

    def initialized_keys(self, path: str | os.PathLike | None, keywords: dict[str, Any]) -> set[str]:
        """The classification head's tensors, unless the checkpoint's config says that a classifier was saved."""
        saved = (stored_config(path, keywords) or {}).get("architectures") or []
        if type(self).__name__ in saved:
            return set()
        return {name for name in self.state_dict() if re.match(CLASSIFIER, name)}
