"""What the parts of the server share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ..settings.validation import check_integer, check_number
from .manager import ContinuousBatchingManager
from .visit import Visit

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of an HTTP request.

    Attributes:
        max_request_bytes: of its body.
        request_timeout: seconds from its arrival to the end of its response.
        max_new_tokens: of each text; None leaves it to the context.
        max_choices: texts of one request (`n`).

    Raises:
        TypeError, ValueError: a limit is wrong.
    """

    max_request_bytes: int = 4 * 2**20
    request_timeout: float = 600.0
    max_new_tokens: int | None = None
    max_choices: int = 16

    def __post_init__(self):
        check_integer("max_request_bytes", self.max_request_bytes, 1)
        check_integer("max_choices", self.max_choices, 1)
        check_number("request_timeout", self.request_timeout)
        if not self.request_timeout:
            raise ValueError("request_timeout=0 leaves no time to answer: pass the seconds that a request may take.")
        if self.max_new_tokens is not None:
            check_integer("max_new_tokens", self.max_new_tokens, 1)


@dataclass(eq=False)
class Service:
    """A running server.

    Attributes:
        manager: decodes.
        tokenizer: of the model.
        limits: of an HTTP request.
        api_key: that clients must send; None lets everyone in.
        seed: of requests that have none and do not sample.
        is_draining: whether new requests are refused, since the server is about to stop.
        visits: the requests that are being answered.
    """

    manager: ContinuousBatchingManager
    tokenizer: PreTrainedTokenizerBase
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    api_key: str | None = field(default=None, repr=False)
    seed: int = field(default_factory=lambda: secrets.randbelow(MAX_SEED))
    is_draining: bool = False
    visits: set[Visit] = field(default_factory=set)

    def drain(self) -> None:
        """Take no more requests; those that are there are finished."""
        self.is_draining = True
