"""Fits decoding heads to a model: small maps that make it decode faster and leave its weights as they are."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..evaluation.calibration import Calibration, calibrate_prompts, check_confidence, fewest_tokens
from ..evaluation.inspection import prompt_tokens
from ..evaluation.stored_settings import is_own_folder
from ..hub.staging import staged
from ..models.decoding_heads import DecodingHeads, ExitRisk, FittedModel
from ..models.heads_file import HEADS_NAME, save_heads
from ..settings.speculative_wavefront import SpeculativeWavefrontConfig
from ..settings.validation import check_integer
from . import parts
from .own_text import TextBatch, text_batches, write_texts
from .start import explained, fit_start

HELD_OUT_SHARE = 8
"""One prompt in this many is held out: what is reported, and the exit threshold, come from their texts."""

DEEPEST = 16
"""The exit probe learns from recurrences up to this one."""

LEARNING_RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How heads are fitted.

    Args:
        draft_depths: depths that get a readout; those of the default `draft_depth` and of 1 when None.
        rank: of a readout's map, and of the exit probe.
        extra_tokens: how many tokens to guess behind a draft; 0 for no cell.
        extra_rank: of the cell's map.
        start_rank: of the start head's map, at most; 0 for none. A core that reads no injected embedding gets none.
        max_new_tokens: tokens that the model writes after each prompt.
        epochs: passes over the texts.
        batch_size: texts in a step; 16 times as many are written at once.
        epsilon, confidence: of the exit threshold; see `evaluation.calibration`.
        seed: of the texts, the first tensors and the order of batches.
        progress: show progress bars.

    Raises:
        TypeError, ValueError: a value is out of range.
    """

    draft_depths: Sequence[int] | None = None
    rank: int = 64
    extra_tokens: int = 4
    extra_rank: int = 192
    start_rank: int = 192
    max_new_tokens: int = 128
    epochs: int = 4
    batch_size: int = 4
    epsilon: float = 0.01
    confidence: float = 0.95
    seed: int = 0
    progress: bool = True

    def __post_init__(self):
        for name in ("rank", "extra_rank", "max_new_tokens", "epochs", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        for name in ("extra_tokens", "start_rank"):
            check_integer(name, getattr(self, name), 0)
        check_confidence(self.epsilon, self.confidence)

    def depths(self, full: int) -> list[int]:
        """The draft depths of a model with `full` recurrences.

        Raises:
            ValueError: a depth is not below `full`, or there is none.
        """
        if full < 2:
            raise ValueError(f"The model has mean_recurrence={full}: with one recurrence there are no drafts to fit.")
        if self.draft_depths is None:
            config = SpeculativeWavefrontConfig()
            config.fill_depths(full)
            return sorted({1, config.draft_depth})
        for depth in self.draft_depths:
            check_integer("draft_depths", depth, 1)
            if depth >= full:
                raise ValueError(f"draft_depths={list(self.draft_depths)} must be below the full depth of {full}.")
        return sorted(set(self.draft_depths))


@dataclass(frozen=True)
class FitResult:
    """Fitted heads, and what they do to held-out text.

    Attributes:
        heads: the heads.
        drafts: by depth, the share of right drafts without and with the readout.
        extra: by depth and distance, the share of right guesses behind a right draft.
        calibration: of the exit probe's threshold.
        start: the share of the last states' variance that the start head predicts; None without one.
        tokens: new tokens that the heads were fitted to.
    """

    heads: DecodingHeads
    drafts: dict[int, tuple[float, float]]
    extra: dict[int, list[float]]
    calibration: Calibration
    start: float | None
    tokens: int

    def save(self, folder: str | os.PathLike, model, tokenizer) -> None:
        """Save the heads with the model.

        Args:
            folder: the model's own (adds only the heads' file), or a new one for the whole checkpoint.

        Raises:
            ValueError: the folder holds something else.
        """
        if is_own_folder(folder, model):
            save_heads(self.heads, Path(folder) / HEADS_NAME)
            return
        with staged(folder) as stage:
            model.save_pretrained(stage)
            tokenizer.save_pretrained(stage)
            save_heads(self.heads, stage / HEADS_NAME)

    def lines(self) -> list[str]:
        """The result in sentences."""
        lines = [f"Fitted to {self.tokens} tokens. On held-out text:"]
        for depth, (plain, fitted) in self.drafts.items():
            lines.append(
                f"- drafts after {depth} recurrences: {plain:.2%} right without the readout, {fitted:.2%} with it"
            )
        for depth, shares in self.extra.items():
            if shares:
                said = ", ".join(f"{share:.1%}" for share in shares)
                lines.append(f"- guesses of the next tokens behind a draft after {depth}: right up to each {said}")
        if self.start is not None:
            lines.append(f"- initial states: the start head predicts {self.start:.1%} of the last states' variance")
        return [*lines, f"- {self.calibration.outcome}"]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the heads, as plain JSON values."""
        values = {name: getattr(self, name) for name in ("drafts", "extra", "start", "tokens")}
        return values | {"calibration": self.calibration.to_dict()}


def fit_heads(model, tokenizer, prompts: Sequence[str], settings: FitSettings = FitSettings()) -> FitResult:
    """Fit heads to what a model writes after prompts. The model does not change.

    Args:
        model: a recurrent-depth model with a tied or untied head; heads that it already has are not used.
        tokenizer: its left-padding tokenizer.
        prompts: texts like those to be decoded; one in `HELD_OUT_SHARE` is held out.

    Raises:
        ValueError: there are too few prompts, the model has too few recurrences, or the held-out texts have too few
            tokens to show the exit probe's epsilon.
    """
    depths = settings.depths(model.config.mean_recurrence)
    if len(prompts) < 2 * HELD_OUT_SHARE:
        raise ValueError(f"{len(prompts)} prompts are too few: pass at least {2 * HELD_OUT_SHARE}, better hundreds.")
    held_out, fitted = list(prompts[::HELD_OUT_SHARE]), [p for i, p in enumerate(prompts) if i % HELD_OUT_SHARE]
    most, needed = len(held_out) * settings.max_new_tokens, fewest_tokens(settings.epsilon, settings.confidence)
    if most < needed:
        raise ValueError(
            f"The held-out prompts leave at most {most} tokens; to show epsilon={settings.epsilon:g} with "
            f"confidence={settings.confidence:g}, {needed} are needed: use more prompts, or a larger epsilon."
        )
    before, model.decoding_heads = model.decoding_heads, None
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        return _fitted(model, tokenizer, fitted, held_out, depths, settings)
    finally:
        model.decoding_heads = before
        for parameter in frozen:
            parameter.requires_grad_(True)


def _fitted(model, tokenizer, prompts, held_out, depths: list[int], settings: FitSettings) -> FitResult:
    batches, checked = (
        text_batches(
            model,
            write_texts(
                model,
                tokenizer,
                prompt_tokens(model, tokenizer, texts, settings.max_new_tokens),
                settings.max_new_tokens,
                16 * settings.batch_size,  # a pass of one position each is small
                settings.seed + part,
                settings.progress,
            ),
            depths,
            DEEPEST,
            settings.batch_size,
            settings.seed + part,
            settings.progress,
        )
        for part, texts in enumerate((prompts, held_out))
    )
    heads = fit_to(model, batches, depths, settings)
    drafts = {k: tuple(parts.readout_share(model, each, checked, k) for each in (None, heads)) for k in depths}
    extra = {k: parts.extra_shares(model, heads, checked, k, settings.extra_tokens) for k in depths}
    start = explained(model, heads, checked) if heads.has_start else None
    model.decoding_heads = heads
    calibration = calibrate_prompts(
        model,
        tokenizer,
        held_out,
        "learned",
        settings.epsilon,
        settings.confidence,
        max_new_tokens=settings.max_new_tokens,
        batch_size=4 * settings.batch_size,
        progress=settings.progress,
    )
    if calibration.threshold is not None:
        risk = ExitRisk(
            threshold=calibration.threshold,
            epsilon=settings.epsilon,
            confidence=settings.confidence,
            tokens=calibration.tokens,
        )
        heads = heads.changed(heads.tensors, risk=risk)
    return FitResult(heads, drafts, extra, calibration, start, sum(int(batch.is_new.sum()) for batch in batches))


def fit_to(model, batches: Sequence[TextBatch], depths: Sequence[int], settings: FitSettings) -> DecodingHeads:
    """Heads fitted to batches of text, one part after the other."""
    generator = torch.Generator().manual_seed(settings.seed)
    hidden, channels = model.config.hidden_size, batches[0].states[depths[0]].shape[-1]
    firsts: dict[str, tuple[dict[str, torch.Tensor], Callable]] = {}
    for depth in depths:
        first = parts.first_readout(depth, channels, settings.rank, generator)
        firsts[f"readout after {depth}"] = (
            first,
            lambda heads, batch, step, depth=depth: parts.readout_loss(model, heads, batch, depth),
        )
    if settings.extra_tokens:
        # A wave starts behind a draft or, where drafts were wrong, behind the truth.
        turns = [*depths, batches[0].depth]
        first = parts.first_extra(hidden, settings.extra_rank, generator)
        firsts["extra tokens"] = (
            first,
            lambda heads, batch, step: parts.extra_loss(
                model, heads, batch, turns[step % len(turns)], settings.extra_tokens
            ),
        )
    first = parts.first_probe(channels, settings.rank, generator)
    firsts["exit probe"] = first, lambda heads, batch, step: parts.probe_loss(heads, batch)
    heads = DecodingHeads(FittedModel.of(model.config), {}, settings.extra_tokens)
    for name, (first, loss) in firsts.items():
        tensors = train(heads, first, batches, loss, settings, name, generator)
        heads = heads.changed(heads.tensors | tensors)
    if settings.start_rank and model.has_injected_embedding:
        heads = heads.changed(heads.tensors | fit_start(model, batches, settings.start_rank))
    return heads


def train(
    heads: DecodingHeads,
    first: dict[str, torch.Tensor],
    batches: Sequence[TextBatch],
    loss_of: Callable[[DecodingHeads, TextBatch, int], torch.Tensor],
    settings: FitSettings,
    name: str,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Tensors trained by AdamW with a warm-up and a cosine decay.

    Args:
        first: the tensors to begin with.
        loss_of: the loss of heads on a batch at a step.
    """
    device = batches[0].ids.device
    tensors = {key: tensor.to(device).requires_grad_() for key, tensor in first.items()}
    trained = heads.changed(tensors)
    optimizer = torch.optim.AdamW(tensors.values(), lr=LEARNING_RATE)
    steps = settings.epochs * len(batches)
    warm_up = max(1, min(20, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    order = [i for _ in range(settings.epochs) for i in torch.randperm(len(batches), generator=generator).tolist()]
    for step, index in enumerate(tqdm(order, desc=name, disable=not settings.progress)):
        loss = loss_of(trained, batches[index], step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {key: tensor.detach() for key, tensor in tensors.items()}
