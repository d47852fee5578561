"""What the rows of one call share."""

from dataclasses import dataclass

from transformers.generation.streamers import BaseStreamer

from .choice import TokenChoice
from .stopping import Stopping


@dataclass(eq=False)
class Call:
    """How the rows of a call become text, and where their tokens go.

    Attributes:
        choice: of the next tokens, from logits.
        stopping: when a row ends.
        streamer: gets each committed token once, in order.
        keeps_logits, keeps_scores: whether rows keep what each token was chosen by, before and after the processors.
    """

    choice: TokenChoice
    stopping: Stopping
    streamer: BaseStreamer | None = None
    keeps_logits: bool = False
    keeps_scores: bool = False
