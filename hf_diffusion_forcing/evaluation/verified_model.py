"""A model whose laws are verified: decodes its prompts and compares texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..generation.samplers import SAMPLERS
from ..randomness import keyed_gumbel
from .divergent_tokens import first_difference

PLAIN = {"sampler": "autoregressive"}
ROUNDINGS = 256
"""The most that rounding may move a logit, in epsilons of the model's precision times the largest logit."""


@dataclass(frozen=True)
class Text:
    """One row's output.

    Attributes:
        ids: new ids, including the end token if there is one.
        scores: float32 [tokens, vocabulary], on the CPU; the largest of a token's scores chooses it.
    """

    ids: list[int]
    scores: torch.Tensor

    def first_difference(self, found: list[int]) -> tuple[int, float] | None:
        """The first token at which another output differs, and how much lower that token scored here.

        The margin is infinite where one of them ended: an end is no near-tie. None if they are equal.
        """
        place = first_difference(self.ids, found)
        if place is None:
            return None
        if place == len(self.ids) or place == len(found):
            return place, float("inf")
        scores = self.scores[place]
        return place, float(scores.max() - scores[found[place]])


@dataclass
class VerifiedModel:
    """Decodes the prompts of a verification.

    Args:
        model: a recurrent-depth model.
        prompts: ids of each prompt.
        room: new tokens of each text.
        seed: prompt i is decoded with seed + i.

    Attributes:
        spread: the largest difference between a text's logits in one pass over all positions and in passes over one
            position.
        rounding: the most that rounding moves a logit: `spread`, unless it is too large to be rounding.
    """

    model: Any
    prompts: list[list[int]]
    room: int
    seed: int
    spread: float = field(init=False)
    rounding: float = field(init=False)
    _plain: dict[tuple, list[Text]] = field(default_factory=dict, init=False)

    def __post_init__(self):
        self.spread, largest = self._spread()
        # Recurrences amplify rounding: for the bundled checkpoint it is 112 epsilons in float32.
        self.rounding = min(self.spread, ROUNDINGS * torch.finfo(self.model.dtype).eps * largest)

    def decode(self, rows: list[int], settings: dict[str, Any], padding: int = 0) -> Any:
        """The output of `generate()` for some prompts as one batch, left-padded by `padding` more than needed."""
        width = padding + max(len(self.prompts[row]) for row in rows)
        short = [width - len(self.prompts[row]) for row in rows]
        ids = [[0] * pad + self.prompts[row] for row, pad in zip(rows, short, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in short]
        device = self.model.device
        return self.model.generate(
            torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            **{"seed": [self.seed + row for row in rows], "max_new_tokens": self.room, "do_sample": False} | settings,
            return_dict_in_generate=True,
            output_scores=True,
        )

    def texts(self, rows: list[int], settings: dict[str, Any], padding: int = 0) -> list[Text]:
        """The texts of some prompts, decoded together; see `decode`."""
        output = self.decode(rows, settings, padding)
        width = padding + max(len(self.prompts[row]) for row in rows)
        scores = torch.stack(output.scores, dim=1).float().cpu()
        texts = []
        for index, row in enumerate(rows):
            ids = self._until_the_end(output.sequences[index, width:].tolist(), settings)
            own = scores[index, : len(ids)]
            if settings.get("do_sample"):
                positions = len(self.prompts[row]) + torch.arange(len(ids))
                own = own + keyed_gumbel(torch.tensor([self.seed + row]), positions[None], own.shape[-1])[0]
            texts.append(Text(ids, own))
        return texts

    def plain(self, row: int, **changes: Any) -> Text:
        """The text of autoregression for one prompt, decoded alone; decoded once per change of settings."""
        key = (row, *sorted(changes.items()))
        if key not in self._plain:
            self._plain[key] = self.texts([row], PLAIN | changes)
        return self._plain[key][0]

    def supports(self, sampler: str) -> bool:
        """Whether the sampler is defined for the model."""
        return self.model.has_injected_embedding or not SAMPLERS[sampler].needs_injected_embedding

    def _until_the_end(self, ids: list[int], settings: dict[str, Any]) -> list[int]:
        ends = settings.get("eos_token_id", self.model.generation_config.eos_token_id)
        ends = ends if isinstance(ends, list) else [ends]
        return next((ids[: place + 1] for place, token in enumerate(ids) if token in ends), ids)

    @torch.no_grad()
    def _spread(self) -> tuple[float, float]:
        """The attribute `spread`, and the largest logit."""
        settings = PLAIN | {"kv_sharing": "none"}
        output = self.decode([0], settings | {"output_logits": True})
        config = self.model.decoding_config(**settings).sampler_config
        alone = torch.stack(output.logits, dim=1)[0].float()
        together = self.model(
            output.sequences[:, :-1],
            num_steps=config.num_steps,
            state_scale=config.state_scale,
            seeds=torch.tensor([self.seed], device=self.model.device),
            logits_to_keep=len(alone),
        ).logits[0]
        return float((together.float().to(alone.device) - alone).abs().max()), float(alone.abs().max())
