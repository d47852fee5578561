"""One sequence being decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .call import Call
from .guesses import Guesses
from .position import Position


@dataclass(slots=True, eq=False)
class Row:
    """A sequence being decoded. Its place in the loop's list of rows is its seat in the cache.

    Attributes:
        call: shared with the other rows of its call.
        number: the row's number in its call.
        ids: the prompt, with the left padding that processors and criteria see, then the committed ids.
        shift: absolute position of `ids[0]`; negative with left padding.
        seed: seed of its noise.
        last_position: the last position that may predict a token.
        prompt_length: ids in the prompt.
        embeds: [positions, channels], embeddings of the prompt where ids do not give them.
        block: for each position of the prompt, whether it sees the later ones among them too; empty if none does.
        cached: positions whose keys and values the cache already holds.
        wave: the positions being refined. The first, the front, holds the last committed id.
        has_ended: whether the row has met a stop.
        logits, scores: those of each committed token, before and after the processors, if kept.
        logprobs: the logarithm of each committed token's probability, after the processors, if kept.
        starts: initial states drawn ahead for later positions; see `StateStarts`.
        prompt_state: [1, 1, channels], the prompt's last state, once it has been read.
        last_cell: index of its wave's last state in the last tick's tensors; None before the first tick.
        guesses: guesses tokens after the newest draft; None without guesses.
        is_finite: whether all its states so far were finite (lossless decoding).
        can_narrow: whether values that are not finite may still come from a draft (diffusion forcing).
    """

    call: Call
    number: int
    ids: list[int]
    shift: int
    seed: int
    last_position: int
    cached: int = 0
    embeds: torch.Tensor | None = None
    block: list[bool] = field(default_factory=list)
    prompt_length: int = field(init=False)
    wave: list[Position] = field(default_factory=list)
    has_ended: bool = False
    logits: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    starts: tuple[int, torch.Tensor] | None = None
    prompt_state: torch.Tensor | None = None
    last_cell: int | None = None
    guesses: Guesses | None = None
    is_finite: bool = True
    can_narrow: bool = True

    def __post_init__(self):
        self.prompt_length = len(self.ids)

    @property
    def front(self) -> int:
        """Absolute position of the last committed id."""
        return self.shift + len(self.ids) - 1

    def id_at(self, position: int) -> int:
        """The id at an absolute position; 0 where a prompt was given as embeddings alone."""
        place = position - self.shift
        return self.ids[place] if 0 <= place < len(self.ids) else 0

    def is_in_block(self, position: int) -> bool:
        """Whether an absolute position sees later ones of the prompt."""
        return position < len(self.block) and self.block[position]

    def count_with_whole_block(self, first: int, count: int) -> int:
        """How many of `count` positions from `first` on are left without those of a block that is not whole."""
        if True not in self.block:
            return count
        begin, end = self.block.index(True), len(self.block) - self.block[::-1].index(True)
        return begin - first if begin < first + count < end else count

    @property
    def room(self) -> int:
        """The most positions a wave may have: those that may still predict a token."""
        return self.last_position - self.front + 1

    def commit(self, predicted: int, logits: torch.Tensor, scores: torch.Tensor) -> int:
        """Make the token after the front final, and set `has_ended`. Moves the front, but not the wave.

        Args:
            predicted: the token, unless a processor that keeps a state, or one that raised while the prefix was a
                draft, chooses another one for the final prefix.
            logits, scores: [vocabulary], those of the token; copied if they are kept.

        Returns:
            The token.
        """
        call, token = self.call, predicted
        if call.choice.must_choose_again(self.number, len(self.ids)):
            token, scores = call.choice.choose_final(self.number, self.ids, self.front, self.seed, logits)
        self.ids.append(token)
        if call.keeps_logits:
            self.logits.append(logits.to(call.choice.device, torch.float32, copy=True))
        if call.keeps_scores:
            self.scores.append(scores.to(call.choice.device, torch.float32, copy=True))
        if call.keeps_logprobs:
            self.logprobs.append(float(scores.float().log_softmax(-1)[token]))
        if call.streamer is not None:
            call.streamer.put(torch.tensor([token]))
        self.has_ended = call.stopping.has_ended(self.ids, self.scores if call.keeps_scores else None)
        return token

    def advance(self, frozen: int, predictions: list[int], width: int, recurrences: int) -> None:
        """Drop the first positions of the wave, give the others the new drafts, and add positions at the end.

        Args:
            frozen: positions to drop; their predictions are committed.
            predictions: for each position of the wave, the token it predicts.
            width: positions of the next wave. Those past the last prediction get it as their draft.
            recurrences: core passes of the tick.
        """
        drafts = [self.wave[0].token, *predictions][frozen:]
        drafts += drafts[-1:] * (width - len(drafts))
        kept = self.wave[frozen : frozen + width]
        for position, draft in zip(kept, drafts, strict=False):
            position.steps = position.steps + recurrences if position.token == draft else 0
            position.token = draft
        self.wave = kept + [Position(draft) for draft in drafts[len(kept) : width]]
