"""Follows texts through every recurrence: how far the states move, and what each depth would read out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..cache import NoCache, Placement, absolute_positions
from ..generation.verdict import verdict
from ..hooks.exit_criterion import ExitCriterion, exit_criterion
from ..hooks.latent_criteria import latent_difference
from ..hooks.logits_criteria import kl_divergence
from ..hooks.refinement import Refinement
from ..hooks.settling import sway
from ..models.token_types import prompt_block
from ..randomness import row_seeds
from ..settings.early_exit import EarlyExitConfig
from ..settings.registry import HookSpec
from ..settings.trained_depth import warn_beyond_training
from ..settings.validation import check_integer
from .recurrence_insight import RecurrenceInsight
from .timing import timed_generate

LOGITS_AT_ONCE = 2**25
"""Logits of one readout: 128 MiB in float32. A few tensors of this size exist at a time."""


@torch.no_grad()
def inspect_recurrences(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    num_steps: int | None = None,
    exit_criterion: HookSpec | list = EarlyExitConfig.exit_criterion,
    exit_threshold: float | None = EarlyExitConfig.exit_threshold,
    seed: int | list[int] | None = 0,
    state_scale: float = EarlyExitConfig.state_scale,
    token_type_ids: torch.Tensor | None = None,
    prompt_lengths: Sequence[int] | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> RecurrenceInsight:
    """What every recurrence does to the positions of given texts.

    The text is given (teacher forcing), and all positions are refined together: depth k is what
    `forward(num_steps=k)` gives. A row's numbers do not depend on its batch (in float32, up to rounding). States of
    all depths are kept, [num_steps + 1, batch, width, channels]; logits are made for some positions at a time.

    Args:
        model: a recurrent-depth model.
        input_ids: int64 [batch, width].
        attention_mask: [batch, width], 1 for real tokens; padding may be on either side.
        num_steps: recurrences; the model's `mean_recurrence` when None.
        exit_criterion, exit_threshold: as in `generate()`; called after every recurrence, as `"adaptive"` does.
        seed: of the initial states: row i has seed + i, or the i-th of a list; drawn when None.
        state_scale: factor on a random initial state; 0.0 starts from zeros.
        token_type_ids: int64 [batch, width]; see `RecurrentDepthForCausalLM.forward`.
        prompt_lengths: tokens of each row's prompt, without padding; later ones are marked as the model's own.
        logits_at_once: upper bound on the logits of one readout; at least one column is read out.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value, a row is empty, or a text is longer than
            the model's context.
    """
    if num_steps is None:
        num_steps = model.config.mean_recurrence
    check_integer("num_steps", num_steps, 1)
    check_integer("logits_at_once", logits_at_once, 1)
    criterion = _criterion(model, exit_criterion, exit_threshold)
    _check_texts(model, input_ids, attention_mask, prompt_lengths)
    warn_beyond_training(model.config, num_steps)
    texts = _Texts.placed(model, input_ids, attention_mask, token_type_ids, row_seeds(seed, len(input_ids)))
    states = texts.states(num_steps, state_scale)
    found = _Findings(num_steps, texts.real)
    for depth in range(num_steps):
        found.fill("changes", depth, slice(None), latent_difference(states[depth + 1], states[depth])[texts.real])
    columns = max(logits_at_once // (len(input_ids) * model.config.padded_vocab_size), 1)
    for chunk in torch.arange(input_ids.shape[1], device=input_ids.device).split(columns):
        _read_out(texts, states, chunk, criterion, found)
    return RecurrenceInsight(
        model_name=type(model).__name__,
        has_readable_shallow_states=model.has_readable_shallow_states,
        criterion=getattr(criterion, "name", type(criterion).__name__),
        threshold=getattr(criterion, "threshold", None),
        dtype=states[-1].dtype,
        **texts.described(prompt_lengths),
        **found.joined(),
    )


def inspect_prompts(
    model,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> RecurrenceInsight:
    """`inspect_recurrences` for prompts, and for what the model writes after them at full depth.

    A model with a bidirectional prompt reads each prompt that way, and its own text from left to right.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        prompts: one or more.
        max_new_tokens: tokens to write after each prompt, by greedy autoregression.
        batch_size: prompts in a pass.
        seed: prompt i has seed + i.
        progress: show a progress bar.
        settings: of `inspect_recurrences`.

    Raises:
        TypeError, ValueError: an argument is wrong, a prompt is empty, or one is too long for the model's context.
    """
    check_integer("max_new_tokens", max_new_tokens, 0)
    check_integer("batch_size", batch_size, 1)
    num_steps = settings.get("num_steps")
    if num_steps is not None:
        check_integer("num_steps", num_steps, 1)
    rows = prompt_tokens(model, tokenizer, prompts, max_new_tokens)
    parts = []
    for first in tqdm(range(0, len(rows), batch_size), desc="batches", disable=not progress):
        batch = rows[first : first + batch_size]
        seeds = list(range(seed + first, seed + first + len(batch)))
        lengths = list(map(len, batch))
        if max_new_tokens:
            own = {name: settings[name] for name in ("num_steps", "state_scale") if name in settings}
            inputs = padded_rows(model, tokenizer, batch, lengths)
            call = own | {"sampler": "autoregressive", "do_sample": False, "max_new_tokens": max_new_tokens}
            written = timed_generate(model, inputs, call | {"seed": seeds}).rows
            batch = [ids + new for ids, new in zip(batch, written, strict=True)]
        inputs = padded_rows(model, tokenizer, batch, lengths)
        parts.append(inspect_recurrences(model, **inputs, seed=seeds, prompt_lengths=lengths, **settings))
    return RecurrenceInsight.joined(parts)


@dataclass(eq=False)
class _Texts:
    """A batch of texts and their placement.

    Attributes:
        positions: int64 [batch, width], -1 at padding.
        real: bool [batch, width], False at padding.
        seeds: int64 [batch].
    """

    model: Any
    input_ids: torch.Tensor
    positions: torch.Tensor
    seeds: torch.Tensor
    at: Placement
    real: torch.Tensor

    @classmethod
    def placed(cls, model, input_ids, attention_mask, token_type_ids, seeds) -> _Texts:
        shape = tuple(input_ids.shape)
        positions, start = absolute_positions(attention_mask, 0, shape, input_ids.device)
        block = prompt_block(token_type_ids, model.has_bidirectional_prompt, shape, 0)
        at = NoCache().place(positions, start=start, block=block)
        return cls(model, input_ids, positions, seeds.to(input_ids.device), at, positions >= 0)

    def states(self, num_steps: int, scale: float) -> list[torch.Tensor]:
        """The initial states and those after every recurrence, [batch, width, channels] each."""
        e = self.model.embed(self.input_ids, self.at)
        states = [self.model.initialize_state(e, self.positions, self.seeds, scale)]
        for depth in range(num_steps):
            states.append(self.model.recur(states[-1], e, self.at, depth))
        return states

    def logits(self, state: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """float32 [n, vocabulary], of the real positions in some columns."""
        return self.model.decode(state, self.at, logits_to_keep=chunk)[self.real[:, chunk]].float()

    @property
    def rows(self) -> torch.Tensor:
        """int64 [batch, width], index of each position's row."""
        return torch.arange(len(self.seeds), device=self.positions.device)[:, None].expand_as(self.positions)

    def described(self, prompt_lengths: Sequence[int] | None) -> dict[str, torch.Tensor]:
        """What is known of the real positions beforehand, [n] each, on the CPU."""
        is_new = torch.zeros_like(self.real)
        if prompt_lengths is not None:
            is_new = self.positions >= torch.tensor(prompt_lengths, device=self.positions.device)[:, None]
        values = {"input_ids": self.input_ids, "rows": self.rows, "positions": self.positions, "is_new": is_new}
        return {name: each[self.real].cpu() for name, each in values.items()}

    def of(self, x: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """[1, n, ...], the real positions in some columns of x [batch, width, ...]."""
        chunk = chunk.to(x.device)
        return x[:, chunk][self.real.to(x.device)[:, chunk]][None]


@dataclass(eq=False)
class _Findings:
    """Results by depth, [num_steps, batch, width] each until they are joined.

    Attributes:
        real: bool [batch, width], the positions that have results.
    """

    num_steps: int
    real: torch.Tensor
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def fill(self, name: str, depth: int, chunk: slice | torch.Tensor, values: torch.Tensor) -> None:
        """Enter values [n], of the real positions in some columns."""
        if name not in self.tensors:
            self.tensors[name] = values.new_zeros((self.num_steps, *self.real.shape), device=self.real.device)
        part = self.tensors[name][depth][:, chunk]
        part[self.real[:, chunk]] = values.to(part.device)
        self.tensors[name][depth][:, chunk] = part

    def joined(self) -> dict[str, torch.Tensor]:
        """[num_steps, n] each, the real positions of all rows end to end, on the CPU."""
        return {name: values[:, self.real].cpu() for name, values in self.tensors.items()}


def _read_out(texts: _Texts, states: list[torch.Tensor], chunk: torch.Tensor, criterion, found: _Findings) -> None:
    """Read out some columns at every depth."""
    ids, positions = texts.of(texts.input_ids, chunk), texts.of(texts.positions, chunk)
    if not ids.numel():
        return
    rows = texts.of(texts.rows, chunk)
    last = texts.logits(states[-1], chunk).log_softmax(-1)
    before, memory = None, {}
    for depth in range(found.num_steps):
        logits = texts.logits(states[depth + 1], chunk)
        log_probs = logits.log_softmax(-1)
        first, second = logits.topk(2, dim=-1).values.unbind(-1)
        found.fill("readouts", depth, chunk, logits.argmax(-1))
        found.fill("margins", depth, chunk, first - second)
        found.fill("entropies", depth, chunk, torch.special.entr(log_probs.exp()).sum(-1))
        found.fill("divergences", depth, chunk, kl_divergence(last, log_probs))
        found.fill("sways", depth, chunk, torch.full_like(first, math.inf) if before is None else sway(logits, before))
        before = logits
        refinement = Refinement(
            positions=positions,
            input_ids=ids,
            rows=rows,
            fresh=torch.full_like(positions, depth == 0, dtype=torch.bool),
            steps=torch.full_like(positions, depth),
            recurrences=1,
            budget=found.num_steps,
            seeds=texts.seeds[rows],
            model=texts.model,
            memory=memory,
            before=texts.of(states[depth], chunk).to(states[depth + 1].device),
            states=texts.of(states[depth + 1], chunk),
            logits=logits[None],
            predictions=logits.argmax(-1)[None],
        )
        found.fill("exits", depth, chunk, verdict(criterion, refinement)[0])
        values = refinement.exit_values
        found.fill("exit_values", depth, chunk, torch.full_like(first, math.nan) if values is None else values[0])
        memory = refinement.remembered


def _criterion(model, spec: HookSpec | list, threshold: float | None) -> ExitCriterion:
    criterion = exit_criterion(spec, threshold)
    criterion.check_model(model)
    return criterion


def _check_texts(model, input_ids, attention_mask, prompt_lengths) -> None:
    """Refuse what is not a batch of texts that fit the model's context."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        shown = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids is {shown}: pass an int64 tensor [batch, width], as a tokenizer returns.")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be that of input_ids, "
            f"{tuple(input_ids.shape)}."
        )
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    lengths = mask.sum(-1).tolist()
    if not lengths or min(lengths) == 0:
        raise ValueError(f"input_ids has rows of {lengths} tokens: every text needs at least one.")
    limit = model.config.max_position_embeddings
    if input_ids.shape[1] > limit:
        raise ValueError(f"input_ids has {input_ids.shape[1]} columns, more than the model's context of {limit}.")
    if prompt_lengths is not None and len(prompt_lengths) != len(input_ids):
        raise ValueError(f"prompt_lengths has {len(prompt_lengths)} entries for {len(input_ids)} rows: pass one each.")


def prompt_tokens(model, tokenizer, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
    """The ids of prompts that are not empty and leave room for new tokens."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: pass a list of one or more texts.")
    rows = tokenizer(list(prompts)).input_ids
    room = model.config.max_position_embeddings - max_new_tokens
    for number, (prompt, ids) in enumerate(zip(prompts, rows, strict=True), 1):
        if not prompt or not ids:
            raise ValueError(f"Prompt {number} of {len(rows)} is empty ({prompt!r}): leave it out, or pass a text.")
        if len(ids) > room:
            raise ValueError(
                f"Prompt {number} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} the model's context of "
                f"{model.config.max_position_embeddings} has room for {max(room, 0)}: use a shorter one."
            )
    return rows


def padded_rows(model, tokenizer, rows: list[list[int]], prompt_lengths: list[int]) -> dict[str, torch.Tensor]:
    """Rows as a left-padded batch; a bidirectional prompt is marked where the model has one."""
    width, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.has_bidirectional_prompt:
        pairs = zip(rows, prompt_lengths, strict=True)
        inputs["token_type_ids"] = [
            [0] * (width - len(row)) + [1] * length + [0] * (len(row) - length) for row, length in pairs
        ]
    return {name: torch.tensor(values, device=model.device) for name, values in inputs.items()}
