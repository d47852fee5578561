"""Checkpoints whose tensors are all there, of the right shapes, and no others."""

from __future__ import annotations

import json
import os
from typing import Any

from safetensors import safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..compat import find_file

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Keywords of `from_pretrained` that say where files are."""

SHOWN = 12
"""How many tensors of a kind an error lists."""


def checkpoint_file(path: str | os.PathLike, name: str, keywords: dict[str, Any]) -> str | None:
    """A file of a checkpoint, downloaded if it has to be; None where there is no such file.

    Args:
        path: folder or Hub id.
        keywords: those of `from_pretrained`.
    """
    where = {key: keywords[key] for key in HUB_KEYWORDS if key in keywords}
    return find_file(path, name, **where)


def stored_config(path: str | os.PathLike | None, keywords: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json says, as it is; None where there is none."""
    file = None if path is None else checkpoint_file(path, CONFIG_NAME, keywords)
    if file is None:
        return None
    with open(file, encoding="utf-8") as opened:
        return json.load(opened)


def tensor_names(path: str | os.PathLike | None, keywords: dict[str, Any]) -> set[str] | None:
    """Names of a checkpoint's tensors; None where they are not in safetensors files of the usual names.

    Reads the index of a sharded checkpoint, or the header of a file.
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
    """ValueError if tensors were missing, left over or of other shapes; lists what was found and expected.

    Args:
        info: what transformers says of a load (`output_loading_info`).
        mismatched_allowed: other shapes were asked for (`ignore_mismatched_sizes`).
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
        "(With output_loading_info=True they are returned instead, and what is missing is made up.)"
    )


class CheckedLoading:
    """`from_pretrained` that refuses checkpoints with missing, left-over or misshapen tensors, and corrects what was
    published with stale special-token ids.

    transformers would make such tensors up at random, with a warning. Stands before `PreTrainedModel` among the bases.
    """

    def correct_special_tokens(self, path: str | os.PathLike | None, keywords: dict[str, Any]) -> None:
        """A family's own step after loading.

        Args:
            path: folder or Hub id.
            keywords: those of `from_pretrained`.
        """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, output_loading_info=False, ignore_mismatched_sizes=False, **kwargs
    ):
        """transformers' own, checked.

        Raises:
            ValueError: tensors are missing, left over or of other shapes; lists them. With `output_loading_info=True`
                they are returned instead, as transformers does.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            output_loading_info=True,
            # Shapes that do not fit are an error below, which says them.
            ignore_mismatched_sizes=ignore_mismatched_sizes or not output_loading_info,
            **kwargs,
        )
        model.correct_special_tokens(pretrained_model_name_or_path, kwargs)
        if output_loading_info:
            return model, info
        check_loaded(info, ignore_mismatched_sizes)
        return model
