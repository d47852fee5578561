"""Calls `generate()` and records everything observable, or the reason for a refusal."""

import re
import traceback
from dataclasses import dataclass
from typing import Any

import torch

from ... import RavenForCausalLM
from .probes import Probe, ProbeError


@dataclass(frozen=True)
class Refusal:
    """A refused call, with the error's message."""

    reason: str


Outcome = dict[str, Any]
"""Everything observable about a call: the ids, the fields of a dict output, the tokens passed to a streamer, the width
of each pass. All values are plain, so that outcomes can be compared."""


def plain(value: Any) -> Any:
    """Return a value as lists, numbers and strings."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value.to_dict() if hasattr(value, "to_dict") else repr(value)


def observe(model: RavenForCausalLM, keywords: dict) -> Outcome:
    """Call `generate()` and record the outcome."""
    widths: list[int] = []

    def keep_width(module, args):
        widths.append(args[0].shape[1])

    torch.manual_seed(0)
    # Samplers do not call `forward()`, but every pass runs the first layer.
    hook = model.transformer.prelude[0].register_forward_pre_hook(keep_width)
    try:
        result = model.generate(**keywords)
    finally:
        hook.remove()
    outcome: Outcome = {"widths": widths, "type": type(result).__name__}
    if "streamer" in keywords:
        outcome["streamed"] = keywords["streamer"].events
    fields = {"sequences": result} if isinstance(result, torch.Tensor) else dict(result)
    return outcome | {name: plain(value) for name, value in fields.items()}


def is_deliberate(error: Exception) -> bool:
    """Whether a `raise` statement raised the error, not code that does not expect such a call."""
    return (traceback.extract_tb(error.__traceback__)[-1].line or "").startswith("raise ")


def on_one_line(message: str) -> str:
    """Return an error's message on one line, without its full stop and without object addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(message.split())).rstrip(".")


def attempt(model: RavenForCausalLM, settings: dict, probe: Probe) -> Outcome | Refusal:
    """Call `generate()` with the argument.

    Raises:
        ProbeError: the call crashes, and the same call of transformers does not.
    """

    def call(settings: dict) -> Outcome:
        return observe(model, settings | probe.base | probe.added(model, settings))

    try:
        return call(settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = on_one_line(str(error))
        if is_deliberate(error):
            return Refusal(reason)
        try:
            call({"seed": settings["seed"]})
        except Exception as without_sampler:
            if (type(without_sampler), str(without_sampler)) == (type(error), str(error)):
                return Refusal(f"fails without a sampler, too ({type(error).__name__}: {reason}): leave it out")
        raise ProbeError(f"crashes with {type(error).__name__}: {reason}") from error
    except Exception as error:
        raise ProbeError(f"crashes with {type(error).__name__}: {on_one_line(str(error))}") from error
