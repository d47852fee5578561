"""The outcome of a `generate()` call: everything that can be observed, or why it was refused."""

import re
import traceback
from dataclasses import dataclass
from typing import Any

import torch

from ... import RavenForCausalLM
from .probes import Probe, ProbeError


@dataclass(frozen=True)
class Refusal:
    """A call that was refused, with the error's first sentence."""

    reason: str


Outcome = dict[str, Any]
"""Everything that can be observed of a call: its ids, the fields of a dict output, a streamer's tokens, the width of
each pass of `forward()`. These are plain values, so that outcomes can be compared."""


def plain(value: Any) -> Any:
    """A value as lists, numbers and strings."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value.to_dict() if hasattr(value, "to_dict") else repr(value)


def observe(model: RavenForCausalLM, keywords: dict) -> Outcome:
    """Call `generate()` and record its outcome."""
    widths: list[int] = []

    def keep_width(module, args, kwargs):
        widths.append((args[0] if args else kwargs["input_ids"]).shape[1])

    torch.manual_seed(0)
    hook = model.register_forward_pre_hook(keep_width, with_kwargs=True)
    try:
        result = model.generate(**keywords)
    finally:
        hook.remove()
    outcome: Outcome = {"forward": widths, "type": type(result).__name__}
    if "streamer" in keywords:
        outcome["streamed"] = keywords["streamer"].events
    fields = {"sequences": result} if isinstance(result, torch.Tensor) else dict(result)
    return outcome | {name: plain(value) for name, value in fields.items()}


def is_deliberate(error: Exception) -> bool:
    """Whether a `raise` statement raised it, rather than code that was not written for such a call."""
    return (traceback.extract_tb(error.__traceback__)[-1].line or "").startswith("raise ")


def first_sentence(message: str) -> str:
    """The first sentence of an error, on one line, without its full stop and without addresses of objects."""
    sentence = re.split(r"(?<=[.!?])\s", " ".join(message.split()), maxsplit=1)[0].rstrip(".")
    return re.sub(r" at 0x[0-9a-f]+", "", sentence)


def attempt(model: RavenForCausalLM, settings: dict, probe: Probe) -> Outcome | Refusal:
    """The outcome of a call with the argument.

    Raises:
        ProbeError: the call crashes, but not in transformers.
    """

    def call(settings: dict) -> Outcome:
        return observe(model, settings | probe.base | probe.added(model, settings))

    try:
        return call(settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = first_sentence(str(error))
        if is_deliberate(error):
            return Refusal(reason)
        try:
            call({"seed": settings["seed"]})
        except Exception as without_sampler:
            if (type(without_sampler), str(without_sampler)) == (type(error), str(error)):
                return Refusal(f"fails without a sampler, too ({type(error).__name__}: {reason})")
        raise ProbeError(f"crashes with {type(error).__name__}: {reason}") from error
    except Exception as error:
        raise ProbeError(f"crashes with {type(error).__name__}: {first_sentence(str(error))}") from error
