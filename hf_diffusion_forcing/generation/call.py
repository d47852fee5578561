"""The state that the rows of one call share."""

from dataclasses import dataclass

from transformers.generation.streamers import BaseStreamer

from .choice import TokenChoice
from .stopping import Stopping


@dataclass(eq=False)
class Call:
    """How the rows of a call choose tokens, stop, and stream.

    Attributes:
        choice: chooses the next tokens from logits.
        stopping: decides when a row ends.
        streamer: gets each committed token once, in order.
        keeps_logits, keeps_scores: whether rows keep each token's logits (before the processors) and scores (after).
        keeps_logprobs: whether rows keep the logarithm of each token's probability, after the processors.
    """

    choice: TokenChoice
    stopping: Stopping
    streamer: BaseStreamer | None = None
    keeps_logits: bool = False
    keeps_scores: bool = False
    keeps_logprobs: bool = False
