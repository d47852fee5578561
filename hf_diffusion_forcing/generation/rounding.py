"""Finds the widths of a pass at which a model's layers round alike, on this machine."""

from __future__ import annotations

from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.utils import logging

from ..cache import Placement
from ..cache.exact import ALONE, TILE, Kernel, QueryByQuery, Tiles, of_all_widths, rounded
from ..compat import attn_implementation
from ..models.interface import RecurrentDepthInterface
from ..packing import packed_dtypes

logger = logging.get_logger(__name__)

NARROW = (1, 2, 4, 8, 16, 32)
"""The widths among which the least is found that rounds as the last does."""

WIDE = 64
"""Above it, widths are multiples of 16, so that few of them need to be compared."""

PLACES = (0, 1, 5, 17, 64, 200, 777, 1500)
"""Positions of the tokens that are compared."""

SEEN = (5, 150, 600)
"""Keys that a compared query sees."""


class Rounding:
    """The widths at which a model's layers round alike.

    Eight tokens are run at a width, in every place and among others, and every number of the embeddings, the states
    after two recurrences and the logits is compared with those at `NARROW[-1]`. A width is compared once, when it is
    first used.

    Attributes:
        least: the least width that rounds as all of `NARROW` above it do.
    """

    def __init__(self, model: RecurrentDepthInterface, device: torch.device):
        self.device = device
        count = len(PLACES)
        vocabulary, limit = model.config.padded_vocab_size, model.config.max_position_embeddings
        self.ids = torch.arange(1, count + 1, device=device).mul(7919).remainder(vocabulary)
        self.positions = torch.tensor(PLACES, device=device).clamp_max(limit - 1)
        self.attention = OwnValue()
        self.equal: set[int] = set()
        """The widths that were found to agree, or to have no agreeing one near them."""
        self.widths: dict[int, int] = {}
        """The width for each number of positions so far."""
        self.expected = [x[:, :count] for x in self._run(model, NARROW[-1], 0)]
        self.least = NARROW[-1]
        if not self._agrees(model, self.least):
            self._warn(model, f"a position's numbers depend on its place among {self.least}")
        for width in reversed(NARROW[:-1]):
            if not self._agrees(model, width):
                break
            self.least = width
        self.equal.update(width for width in NARROW if width >= self.least)
        if not self.attention.treats_queries_alike(device):
            self._warn(model, "the attention of a query depends on the queries and masked keys beside it")

    @classmethod
    @torch.no_grad()
    def of(cls, model: RecurrentDepthInterface, device: torch.device) -> Rounding:
        """A model's widths; found once per dtype, device, thread count, autocast, kernel and packing."""
        packed = tuple(packed_dtypes(model))
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = model.dtype, device, torch.get_num_threads(), autocast, attn_implementation(model.config), packed
        with _COMPARING:
            found = _FOUND.setdefault(model, {})
            if key not in found:
                found[key] = cls(model, device)
            return found[key]

    def width(self, model: RecurrentDepthInterface, positions: int) -> int:
        """The width of a pass over so many positions."""
        if positions not in self.widths:
            steps = [step for step in NARROW if step >= (self.least if positions <= WIDE else 16)]
            tried = [rounded(positions, max(step, self.least)) for step in steps]
            agreeing = (width for width in tried if width in self.equal or self._agrees(model, width))
            width = next(agreeing, None)
            if width is None:
                width = tried[0]
                self._warn(model, f"a pass over {width} positions rounds otherwise than one over {self.least}")
            self.equal.add(width)
            self.widths[positions] = width
        return self.widths[positions]

    @torch.no_grad()
    def _agrees(self, model: RecurrentDepthInterface, width: int) -> bool:
        """Whether every position of a pass has the expected numbers, whatever its place and its neighbours."""
        for shift in (0, 3):
            order = self._order(width, shift)
            for got, expected in zip(self._run(model, width, shift), self.expected, strict=True):
                if not torch.equal(got[0].nan_to_num(), expected[0, order[: got.shape[1]]].nan_to_num()):
                    return False
        return True

    def _order(self, width: int, shift: int) -> torch.Tensor:
        """Which of the tokens stands in each place, int64 [width]."""
        return (torch.arange(width, device=self.device) + shift) % len(PLACES)

    def _run(self, model: RecurrentDepthInterface, width: int, shift: int) -> list[torch.Tensor]:
        """Embeddings, states and logits of a pass: [1, width, ...]; logits of at most `WIDE` positions."""
        order = self._order(width, shift)
        ids, positions = self.ids[order][None], self.positions[order][None]
        rows = torch.zeros_like(ids)
        at = Placement(self.attention, positions, PLACES[-1] + 1, range(1), rows, ids=ids)
        e = model.embed(ids, at)
        start = s = model.initialize_state(e, positions, torch.ones_like(ids))
        for depth in range(2):
            s = model.recur(s, e, at, depth)
        kept = torch.arange(min(width, WIDE), device=self.device)
        return [e, start, s, model.decode(s, at, logits_to_keep=kept)]

    def _warn(self, model: RecurrentDepthInterface, finding: str) -> None:
        dtype = str(model.dtype).removeprefix("torch.")
        logger.warning_once(
            f"exact=True cannot be kept in {dtype} on {self.device.type}: {finding}. A nearly tied token may differ "
            "from autoregression's; use dtype=torch.float32 on a CPU, or prefill_chunk_size for shorter passes."
        )


_FOUND: WeakKeyDictionary[RecurrentDepthInterface, dict[tuple[Any, ...], Rounding]] = WeakKeyDictionary()
_COMPARING = Lock()


class OwnValue:
    """Attention of every position to itself alone, which leaves the other layers' arithmetic to be compared."""

    def __init__(self):
        self.calls: set[tuple[Kernel, int, int, int, torch.dtype]] = set()
        """Kernel, heads, key heads, channels and dtype of the calls."""

    def slot(self, depth: int) -> int:
        return 0

    def attend(self, layer: int, query, key, value, at: Placement, slot: Any) -> torch.Tensor:
        _, heads, _, head_dim = query.shape
        self.calls.add((at.kernel, heads, key.shape[1], head_dim, query.dtype))
        return value.repeat_interleave(heads // key.shape[1], dim=1).to(query.dtype)

    def treats_queries_alike(self, device: torch.device) -> bool:
        """Whether the exact kernels of all calls so far give a query the same output in every company."""
        return all(alone_as_in_company(*call, device) for call in self.calls)


def alone_as_in_company(
    kernel: Kernel, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether a query has the same output whatever masked keys follow those it sees, and in every chunk of a prompt."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    query, keys, values = (
        random(heads, head_dim),
        random(kv_heads, max(SEEN), head_dim),
        random(kv_heads, max(SEEN), head_dim),
    )

    def stored(seen: int, extent: int) -> list[torch.Tensor]:
        """Keys and values of a second row, of which the query sees some: strided views, as of a cache with room."""
        views = [random(4, kv_heads, extent + 7, head_dim)[::2, :, :extent] for _ in range(2)]
        for into, own in zip(views, (keys, values), strict=True):
            into[1, :, :seen] = own[:, :seen]
        return views

    def decoded(seen: int, extent: int) -> torch.Tensor:
        queries, hidden = random(2, heads, 1, head_dim), random(2, 1, 1, extent).zero_()
        queries[1, :, 0], hidden[1, ..., seen:] = query, float("-inf")
        return QueryByQuery(kernel)(queries, *stored(seen, extent), hidden)[1]

    def read(seen: int, before: int, after: int) -> torch.Tensor:
        """As a prompt's position, in a chunk with some before it and after it."""
        queries = random(2, heads, before + 1 + after, head_dim)
        queries[1, :, before] = query
        first = [seen - 1 - before] * 2
        tiles = Tiles(kernel, first, [before + 1 + after] * 2)
        return tiles(queries, *stored(seen, rounded(seen + after)), None)[1, :, before]

    kernel = of_all_widths(kernel)
    for seen in SEEN:
        alone, prompt = decoded(seen, rounded(seen, ALONE)), read(seen, 0, 0)
        if not all(torch.equal(alone, decoded(seen, rounded(seen, ALONE) + more)) for more in (ALONE, TILE, 8 * TILE)):
            return False
        if not all(torch.equal(prompt, read(seen, *beside)) for beside in ((seen - 1, 0), (0, TILE), (4, 70))):
            return False
    return True
