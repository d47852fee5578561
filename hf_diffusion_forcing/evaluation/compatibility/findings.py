"""How samplers treat an argument: it works, is refused, or has no effect."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers

from ... import RavenForCausalLM
from ...generation.samplers import SAMPLERS
from ...settings.sampler_config import SAMPLER_CONFIGS
from .outcomes import Outcome, Refusal, attempt, observe
from .probes import PROBES, Probe, ProbeError


@dataclass(frozen=True)
class Finding:
    """How a sampler treats an argument: "works", "refused" or "no effect", and a note."""

    status: str
    note: str = ""


def sampler_settings(sampler: str, **wanted) -> dict:
    """Keywords that choose a sampler, with the wanted settings that it has."""
    names = SAMPLER_CONFIGS[sampler].fields()
    return {"sampler": sampler, "seed": 4} | {name: value for name, value in wanted.items() if name in names}


def check_against_reference(model: RavenForCausalLM, sampler: str, probe: Probe) -> None:
    """Check that the argument has the same effect in an equivalent decoding.

    A wave of one position with all its recurrences in one tick equals autoregression with shared keys and values. The
    speculative wavefront always equals autoregression. Greedy autoregression equals transformers' own decoding;
    sampling uses other noise.
    """
    if SAMPLERS[sampler].has_ticks:
        depth = model.config.mean_recurrence
        sharing = "none" if SAMPLERS[sampler].is_lossless else "last"
        settings = sampler_settings(
            sampler, kv_sharing=sharing, wavefront=1, inner_recurrence=depth, exit_threshold=0.0
        )
        expected_settings = sampler_settings("autoregressive", kv_sharing=sharing)
    elif probe.argument == "do_sample" or "do_sample" in probe.base:
        return
    else:
        settings, expected_settings = sampler_settings(sampler), {"seed": 4}

    outcome, expected = attempt(model, settings, probe), attempt(model, expected_settings, probe)
    if isinstance(outcome, Refusal) or isinstance(expected, Refusal):
        raise ProbeError(f"is refused by one of two that must decode alike: {outcome}, {expected}")
    for name in ("sequences", "streamed"):
        if outcome.get(name) != expected.get(name):
            raise ProbeError(f"gives {name} {outcome.get(name)} where it must be {expected.get(name)}")
    for name in ("scores", "logits"):
        mine, theirs = (torch.tensor(either.get(name, [])) for either in (outcome, expected))
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs, atol=1e-4):
            raise ProbeError(f"gives other {name} than its reference")


def find(model: RavenForCausalLM, sampler: str, probe: Probe, bases: dict[tuple[str, int], Outcome]) -> Finding:
    """Run a probe with a sampler.

    Args:
        bases: outcomes of earlier base calls, by sampler and the identity of the base.

    Raises:
        ProbeError: the argument crashes, does nothing without a reason, or differs from the reference.
    """
    settings = sampler_settings(sampler, wavefront=8, inner_recurrence=2)
    outcome = attempt(model, settings, probe)
    if isinstance(outcome, Refusal):
        return Finding("refused", outcome.reason.replace(f"sampler={sampler!r}", "this sampler"))
    key = sampler, id(probe.base)
    if key not in bases:
        bases[key] = observe(model, settings | probe.base)
    if outcome == bases[key]:
        if not probe.no_effect:
            raise ProbeError("has no effect, and its probe gives no reason")
        return Finding("no effect", probe.no_effect)
    check_against_reference(model, sampler, probe)
    return Finding("works", probe.remark)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the probes' calls."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def findings(model: RavenForCausalLM) -> dict[str, list[tuple[Probe, dict[str, Finding]]]]:
    """Per topic, each probe with its finding for every sampler.

    Raises:
        ProbeError: some arguments have problems; the message names each.
    """
    found, bases, problems = {}, {}, []
    for topic, group in PROBES.items():
        found[topic] = []
        for probe in group:
            row = {}
            for sampler in SAMPLER_CONFIGS:
                try:
                    with probe.around():
                        row[sampler] = find(model, sampler, probe, bases)
                except ProbeError as error:
                    problems.append(f"{probe.argument} with sampler={sampler!r} {error}")
            found[topic].append((probe, row))
    if problems:
        raise ProbeError("\n".join(problems))
    return found
