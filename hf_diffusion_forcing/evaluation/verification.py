"""Verifies the package's laws on a model, in its own precision and on its own device."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import torch
from tqdm import tqdm

from ..generation.samplers import SAMPLERS
from ..settings.diffusion_forcing import DiffusionForcingConfig
from ..settings.early_exit import EarlyExitConfig
from ..settings.validation import check_integer
from .provenance import describe_machine, describe_model, versions
from .verdict import Outcome, Verdict, Verification
from .verified_model import PLAIN, Text, VerifiedModel

SAMPLED = {"do_sample": True, "temperature": 1.0}
PADDING = 5
"""Columns of padding that a prompt gets for nothing."""


def verify(
    model,
    prompts: list[list[int]],
    max_new_tokens: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> Verification:
    """Verify the laws of docs/how-it-works.md on a model: its own weights, precision and device.

    Args:
        model: a recurrent-depth model in evaluation mode. Nothing of it is changed.
        prompts: ids of at least two prompts, of different lengths.
        max_new_tokens: new tokens of each text, at least 2.
        seed: prompt i is decoded with seed + i.
        progress: show a progress bar.

    Returns:
        A verdict on every law and sampler.

    Raises:
        ValueError: there are fewer than two prompts, one is empty, or one leaves no room in the context.
    """
    check_integer("max_new_tokens", max_new_tokens, 2)
    check_integer("seed", seed, 0)
    if len(prompts) < 2 or not all(prompts):
        raise ValueError(
            f"prompts has {len(prompts)} prompts of {[len(p) for p in prompts]} tokens: pass at least two, none empty."
        )
    limit, longest = model.config.max_position_embeddings, PADDING + max(map(len, prompts)) + max_new_tokens
    if longest > limit:
        raise ValueError(
            f"A prompt of {max(map(len, prompts))} tokens with {max_new_tokens} new ones and {PADDING} of padding "
            f"exceeds the context of {limit}: pass shorter prompts, or a smaller max_new_tokens."
        )
    subject = VerifiedModel(model, prompts, max_new_tokens, seed)
    settings = {
        "model": describe_model(model),
        "machine": describe_machine(model),
        "versions": versions(),
        "date": date.today().isoformat(),
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "rounding": subject.rounding,
    }
    checks = list(_checks())
    verdicts = []
    for law, sampler, check in tqdm(checks, desc="laws", disable=not progress):
        if not subject.supports(sampler):
            verdicts.append(Verdict(law, sampler, "not defined", "the model has no injected embedding"))
            continue
        outcome, detail = check(subject, sampler)
        verdicts.append(Verdict(law, sampler, outcome, detail))
    return Verification(settings, verdicts)


Check = Callable[[VerifiedModel, str], tuple[Outcome, str]]


def _checks() -> Iterator[tuple[str, str, Check]]:
    """Every law with each sampler that it speaks of."""
    yield "A text's logits are the same in one pass and token by token.", PLAIN["sampler"], one_pass
    ticking = [name for name, sampler in SAMPLERS.items() if sampler.has_ticks]
    lossless = [name for name in ticking if SAMPLERS[name].is_lossless]
    exits = [name for name in ticking if issubclass(SAMPLERS[name].config_class, EarlyExitConfig)]
    for name in lossless:
        yield "The text is autoregression's, greedy and sampled.", name, equals_autoregression
        yield "With exact=True in both, it is so bit for bit.", name, equals_bit_for_bit
    yield (
        "A wave of one position at full depth is autoregression with shared keys and values.",
        DiffusionForcingConfig.sampler,
        wave_of_one,
    )
    for law, check in {
        "A row's text does not depend on its batch.": in_a_batch,
        "Left padding changes nothing.": with_padding,
        "The same seed gives the same text.": with_the_same_seed,
        "A text ends exactly at its end token or length.": exact_stops,
        "A saved model decodes as before, with no flag.": saved_and_loaded,
    }.items():
        for name in SAMPLERS:
            yield law, name, check
    for name in exits:
        yield "A front takes at most num_steps recurrences.", name, ends_within_its_budget


def one_pass(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    detail = f"they differ by {subject.spread:.2g}"
    return "holds" if subject.spread == subject.rounding else "broken", detail


def equals_autoregression(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    pairs = []
    for row in range(len(subject.prompts)):
        for changes in ({}, SAMPLED):
            # The lossless sampler keeps an entry for every recurrence, as autoregression does by default.
            (text,) = subject.texts([row], {"sampler": sampler} | changes)
            pairs.append((row, subject.plain(row, **changes), text))
    return compared(subject, pairs, is_exact=True)


def equals_bit_for_bit(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    pairs = []
    for row in range(len(subject.prompts)):
        for changes in ({}, SAMPLED):
            (text,) = subject.texts([row], {"sampler": sampler, "exact": True} | changes)
            pairs.append((row, subject.plain(row, exact=True, **changes), text))
    outcome, detail = compared(subject, pairs, is_exact=True)
    if outcome == "holds" and not all(torch.equal(expected.scores, found.scores) for _, expected, found in pairs):
        return "rounding", f"{detail}, but not all scores"
    return outcome, detail


def wave_of_one(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    steps = subject.model.decoding_config(**PLAIN).sampler_config.num_steps
    wave = {"sampler": sampler, "wavefront": 1, "inner_recurrence": steps, "embedding_momentum": 0.0}
    pairs = []
    for row in range(len(subject.prompts)):
        for changes in ({}, SAMPLED):
            (text,) = subject.texts([row], wave | changes)
            pairs.append((row, subject.plain(row, kv_sharing="last", **changes), text))
    return compared(subject, pairs, is_exact=True)


def in_a_batch(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    rows = list(range(len(subject.prompts)))
    together = subject.texts(rows, {"sampler": sampler})
    alone = [subject.texts([row], {"sampler": sampler})[0] for row in rows]
    return compared(subject, list(zip(rows, alone, together, strict=True)), is_exact(sampler))


def with_padding(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    (plain,), (padded,) = (subject.texts([0], {"sampler": sampler}, padding) for padding in (0, PADDING))
    return compared(subject, [(0, plain, padded)], is_exact(sampler))


def with_the_same_seed(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    """Sampled twice; the global generator stands elsewhere the second time."""
    texts = []
    with torch.random.fork_rng(devices=[]):
        for state in (1, 2):
            torch.manual_seed(state)
            texts += subject.texts([0], {"sampler": sampler} | SAMPLED)
    return compared(subject, [(0, *texts)], is_exact(sampler))


def exact_stops(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    (text,) = subject.texts([0], {"sampler": sampler})
    for length in {1, len(text.ids) - 1, len(text.ids)} - {0}:
        (short,) = subject.texts([0], {"sampler": sampler, "max_new_tokens": length})
        if len(short.ids) != length:
            return "broken", f"max_new_tokens={length} gave {len(short.ids)} tokens"
    end = text.ids[len(text.ids) // 2]
    output = subject.decode([0], {"sampler": sampler, "eos_token_id": [end], "pad_token_id": end})
    new, expected = output.sequences[0, len(subject.prompts[0]) :].tolist(), text.ids.index(end) + 1
    if len(new) != expected:
        return "broken", f"the end token comes at token {expected}, but the text has {len(new)} tokens"
    return "holds", f"{len(text.ids)} tokens"


def saved_and_loaded(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    model, settings = subject.model, {"sampler": sampler}
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free // 2:
        return "not defined", f"not checked: the weights take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    (before,) = subject.texts([0], settings)
    stored = model.generation_config
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.generation_config = type(stored).from_dict(stored.to_dict())
            model.generation_config.sampler = sampler
            model.generation_config.sampler_config = {"seed": subject.seed}
            model.save_pretrained(folder)
        finally:
            model.generation_config = stored
        again = type(model).from_pretrained(folder, dtype=model.dtype, device_map=model.device).eval()
        ids = torch.tensor([subject.prompts[0]], device=model.device)
        sequences = again.generate(ids, max_new_tokens=subject.room, do_sample=False)
    found = sequences[0, ids.shape[1] :].tolist()[: len(before.ids)]
    return compared(subject, [(0, before, Text(found, before.scores))], is_exact(sampler))


def ends_within_its_budget(subject: VerifiedModel, sampler: str) -> tuple[Outcome, str]:
    """With a threshold that no state meets."""
    settings = {"sampler": sampler, "exit_threshold": 0.0, "return_trace": True}
    output = subject.decode([0], settings)
    budget = output.trace.budget
    spent = [
        recurrences
        for wave in output.trace.of_row(0)
        for recurrences, _ in zip(wave.recurrences, wave.committed, strict=False)
    ]
    most = max(spent, default=0)
    return "holds" if most <= budget else "broken", f"{most} recurrences of {budget}"


def is_exact(sampler: str) -> bool:
    """Whether a token depends on logits alone, and not on an exit decision, which rounding may change, too."""
    return not issubclass(SAMPLERS[sampler].config_class, EarlyExitConfig)


def compared(subject: VerifiedModel, pairs: list[tuple[int, Text, Any]], is_exact: bool) -> tuple[Outcome, str]:
    """The outcome for pairs of texts that must be equal: prompt, expected and found text.

    A difference is put down to rounding if the two tokens' scores are closer than twice what rounding moves a logit,
    or, without `is_exact`, in any precision below float32.
    """
    tokens, worst = 0, None
    for row, expected, found in pairs:
        tokens += len(expected.ids)
        difference = expected.first_difference(found.ids)
        if difference is not None and (worst is None or difference[1] > worst[2]):
            worst = row, *difference
    if worst is None:
        return "holds", f"{tokens} tokens are equal"
    row, place, margin = worst
    where = f"prompt {row} differs from token {place} on, where the two tokens' scores are {margin:.2g} apart"
    if margin <= 2 * subject.rounding:
        return "rounding", f"{where}; rounding moves a logit by {subject.rounding:.2g}"
    if not is_exact and subject.model.dtype.itemsize < 4:
        return "rounding", f"{where}; in {subject.model.dtype} rounding moves exit decisions: verify it in float32, too"
    return "broken", where
