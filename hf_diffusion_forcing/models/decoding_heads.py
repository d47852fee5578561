"""Small maps fitted to one model, so that it decodes faster: they read its states and never touch its weights.

- A *readout* for each draft depth: a map of low rank, added to the states before the coda, so that shallow drafts are
  right more often.
- The *extra tokens*: a recurrent cell that reads a state and the tokens after it, and guesses the next ones by the
  model's own head (as ReDrafter, arXiv 2403.09919, and Hydra, arXiv 2402.05109, do).
- The *exit probe*: the chance that a state, and its last change, do not yet give the token of full depth.
- The *start head*: a linear map that predicts a new position's last state from its injected embedding and the state on
  its left, so that fewer recurrences remain.

The inputs of the first three are normed by their own root mean square. So, as with a linear map, a widened model's
repeated channels give the same results.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

READOUT = r"readout\.\d+\.up"
"""The names of the tensors that each readout has one of."""

EPSILON = 1e-6
"""Added to mean squares."""


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """The facts of the model that heads were fitted to.

    Attributes:
        model_type: the config's.
        hidden_size: channels of a token embedding.
        vocabulary: tokens that the head predicts.
        depth: full depth, which is the config's `mean_recurrence`.
    """

    model_type: str
    hidden_size: int
    vocabulary: int
    depth: int

    @classmethod
    def of(cls, config: Any) -> FittedModel:
        """The facts of a model's config."""
        return cls(
            model_type=config.model_type,
            hidden_size=config.hidden_size,
            vocabulary=config.padded_vocab_size,
            depth=config.mean_recurrence,
        )


@dataclass(frozen=True, kw_only=True)
class ExitRisk:
    """What is known of the exit probe's threshold.

    Attributes:
        threshold: tokens exit where the probe's value is below it.
        epsilon: the share of tokens that may differ from full depth.
        confidence: the probability that no more do.
        tokens: how many held-out tokens were compared.
    """

    threshold: float
    epsilon: float
    confidence: float
    tokens: int


class DecodingHeads:
    """The heads of one model: a dict of tensors, and the maps that they make.

    The tensors are no parameters of the model: they are saved in a file of their own.

    Args:
        fitted: the model they were fitted to.
        tensors: by name; see the methods.
        extra_tokens: how many tokens the cell was fitted to guess; 0 without a cell.
        risk: of the exit probe; None without a calibrated threshold.
    """

    def __init__(
        self,
        fitted: FittedModel,
        tensors: dict[str, torch.Tensor],
        extra_tokens: int = 0,
        risk: ExitRisk | None = None,
    ):
        self.fitted, self.tensors, self.extra_tokens, self.risk = fitted, tensors, extra_tokens, risk
        self.readout_depths = sorted(int(name.split(".")[1]) for name in tensors if re.fullmatch(READOUT, name))
        """The depths that have a readout, increasing."""
        self._moved: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_moved": {}}

    @property
    def has_exit_probe(self) -> bool:
        return "probe.down" in self.tensors

    @property
    def has_start(self) -> bool:
        return "start.down" in self.tensors

    def corrected(self, states: torch.Tensor, depth: int) -> torch.Tensor:
        """States as the coda should read them for a draft after `depth` recurrences: unchanged without a readout.

        `readout.{depth}.down` [rank, channels] and `.up` [channels, rank].

        Args:
            states: [..., channels], after `depth` recurrences.
        """
        if f"readout.{depth}.up" not in self.tensors:
            return states
        low = F.silu(F.linear(normed(states), self._at(f"readout.{depth}.down", states)))
        return states + F.linear(low, self._at(f"readout.{depth}.up", states)) * scale_of(states)

    def ahead(
        self,
        model: Any,
        states: torch.Tensor,
        tokens: torch.Tensor,
        count: int,
        choose: Callable[[torch.Tensor, int], torch.Tensor],
    ) -> list[torch.Tensor]:
        """Guesses of the tokens after the next one, int64 [..., n] each.

        Args:
            model: the model.
            states: [..., n, channels].
            tokens: int64 [..., n], the token after each position.
            count: how many tokens to guess.
            choose: makes tokens of logits [..., n, vocabulary]; also gets the distance, 1 for the first guess.
        """
        guessed, hidden = [], self.extra_start(model, states)
        for distance in range(1, count + 1):
            hidden = self.extra_step(model, hidden, tokens)
            tokens = choose(self.extra_logits(model, hidden), distance).to(tokens.device)
            guessed.append(tokens)
        return guessed

    def extra_start(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        """The cell's hidden state at a position, [..., hidden_size]."""
        return normed(model.latents(states))

    def extra_step(self, model: Any, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The hidden state after one more token, by `extra.down` [rank, 2 x hidden_size] and `.up` [hidden_size, rank].

        Args:
            tokens: int64 [...].
        """
        embedded = model.get_input_embeddings()(tokens).to(hidden)
        hidden = normed(hidden)
        low = F.silu(F.linear(torch.cat((hidden, normed(embedded)), dim=-1), self._at("extra.down", hidden)))
        return hidden + F.linear(low, self._at("extra.up", hidden))

    def extra_logits(self, model: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of the token after, by `extra.scale` [hidden_size] and the model's own head."""
        return model.get_output_embeddings()(normed(hidden) * self._at("extra.scale", hidden))

    def exit_chance(self, states: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The estimated chance that the readout differs from that at full depth, float32 [...]; NaN if a state is.

        `probe.down` [rank, 2 x channels] reads the state and its change; `probe.change` [1] weighs the logarithm of the
        relative change; `probe.bias` and `.out` [rank], `.offset` [1].

        Args:
            states, before: [..., channels], a recurrence apart.
        """
        return self.exit_logit(states, before).sigmoid()

    def exit_logit(self, states: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The logit of `exit_chance`."""
        states, before = states.float(), before.to(states.device).float()
        change = (states - before) / scale_of(states)
        size = change.pow(2).mean(-1, keepdim=True).add(EPSILON).sqrt()
        both = torch.cat((normed(states), change / size), dim=-1)
        low = F.silu(F.linear(both, self._at("probe.down", states), self._at("probe.bias", states)))
        logit = (low * self._at("probe.out", states)).sum(-1) + size.log()[..., 0] * self._at("probe.change", states)
        return logit + self._at("probe.offset", states)

    def start(self, e: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Initial states of new positions, [..., channels] in the dtype and on the device of e.

        `start.down` [rank, hidden_size + channels], `.up` [channels, rank] and `.mean` [channels].

        Args:
            e: [..., hidden_size], the positions' injected embeddings.
            left: [..., channels], the state on the left of each.
        """
        low = F.linear(torch.cat((e, left.to(e)), dim=-1), self._at("start.down", e))
        return F.linear(low, self._at("start.up", e), self._at("start.mean", e))

    def widened(self, factor: int) -> DecodingHeads:
        """The heads of a model whose channels are repeated `factor` times (see `evaluation.widening`).

        Maps from channels are tiled and divided by the factor, maps to channels repeat.
        """
        size = self.fitted.hidden_size

        def wide(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if name.endswith(".down"):
                parts = tensor.split(size, dim=1)
                return torch.cat([part.repeat(1, factor) for part in parts], dim=1) / factor
            if name.endswith((".up", ".scale", ".mean")):
                return tensor.repeat(factor, *[1] * (tensor.ndim - 1))
            return tensor

        tensors = {name: wide(name, tensor) for name, tensor in self.tensors.items()}
        return self.changed(tensors, fitted=replace(self.fitted, hidden_size=factor * size))

    def only(self, *parts: str) -> DecodingHeads:
        """Some of the heads alone: "readout", "extra", "probe", "start"."""
        kept = {name: tensor for name, tensor in self.tensors.items() if name.split(".")[0] in parts}
        return self.changed(kept, extra_tokens=self.extra_tokens if "extra" in parts else 0)

    def changed(self, tensors: dict[str, torch.Tensor], **facts: Any) -> DecodingHeads:
        """A copy with other tensors, and other facts where they are given."""
        stored = {"fitted": self.fitted, "extra_tokens": self.extra_tokens, "risk": self.risk}
        return DecodingHeads(tensors=tensors, **stored | facts)

    def _at(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A tensor on the device and in the dtype of another; moved once, unless it is being fitted."""
        tensor = self.tensors[name]
        if tensor.requires_grad:
            return tensor.to(like)
        key = name, like.device, like.dtype
        if key not in self._moved:
            self._moved[key] = tensor.to(like)
        return self._moved[key]


def scale_of(x: torch.Tensor) -> torch.Tensor:
    """The root mean square over channels, [..., 1], in the dtype of x [..., channels]."""
    return x.float().pow(2).mean(-1, keepdim=True).add(EPSILON).sqrt().to(x.dtype)


def normed(x: torch.Tensor) -> torch.Tensor:
    """x [..., channels] over its root mean square."""
    return x / scale_of(x)
