"""How often a tick waits for the device: once, however wide the waves, however many the rows and the layers.

Counted on the CPU: what Python reads from a tensor, and what it copies into a new one, waits on an accelerator.
"""

import pytest
import torch

from hf_diffusion_forcing import RavenForCausalLM
from hf_diffusion_forcing.generation.compiled import CorePasses, core_pass
from hf_diffusion_forcing.generation.samplers import SAMPLERS
from support import left_pad, tiny_config
from support.device_traffic import counted
from support.heads import with_start_head

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9], [7, 9, 3]]
FORCING = {"sampler": "diffusion_forcing", "inner_recurrence": 2}
LOSSLESS = {"sampler": "speculative_wavefront", "draft_depth": 1, "second_draft_depth": 3}


def uncompiled(self, s, e, places, entries, extent):
    """`CorePasses.run` without compilation, which a dispatch mode would prevent."""
    return core_pass(self.model, s, e, places, entries.keys, entries.values, extent)


def nothing(self, s, *rest):
    """`CorePasses.run` without a kernel."""
    return s


def counts(settings, rows=1, layers=2):
    """The `Traffic` of every tick."""
    torch.manual_seed(0)
    model = with_start_head(RavenForCausalLM(tiny_config(n_layers_in_recurrent_block=layers)).eval())
    sampler = SAMPLERS[settings["sampler"]]

    class Counted(sampler):
        """The sampler, with every tick counted."""

        ticks = []

        def tick(self, rows):
            with counted() as found:
                super().tick(rows)
            self.ticks.append(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAMPLERS, settings["sampler"], Counted)
        model.generate(**left_pad(ROWS[:rows]), **settings, seed=0, max_new_tokens=16)
    return Counted.ticks


def traffic(settings, rows=1, layers=2):
    """The most reads and the most new tensors of a tick, and how many ticks there were."""
    ticks = counts(settings, rows, layers)
    return max(tick.reads for tick in ticks), max(tick.makes for tick in ticks), len(ticks)


def kernels(settings, layers):
    """The most kernels of a tick over four rows."""
    return max(tick.kernels for tick in counts(settings, 4, layers))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("more", [{"wavefront": 2}, {"wavefront": 16}, {"wavefront": 16, "learned_start": True}])
def test_diffusion_forcing_waits_once(more, rows):
    reads, makes, ticks = traffic(FORCING | more, rows)
    # The wave's own numbers; those of the grid, where the rows differ in width.
    assert reads == 1 and makes <= 2 and ticks > 10


@pytest.mark.parametrize("rows", [1, 4])
def test_lossless_decoding_waits_once(rows):
    reads, makes, ticks = traffic(LOSSLESS, rows)
    # The wave's own numbers; where positions enter and where they are read out; the readouts; three grids.
    assert reads == 1 and makes <= 7 and ticks > 10


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_adaptive_decoding_waits_for_exits_and_then_for_tokens(rows, learned):
    settings = {"sampler": "adaptive", "exit_threshold": 0.1, "learned_start": learned}
    reads, makes, ticks = traffic(settings, rows)
    assert reads <= 2 and makes <= 2 and ticks > 10


@pytest.mark.parametrize("settings", [FORCING, LOSSLESS], ids=lambda settings: settings["sampler"])
def test_layers_cost_no_traffic(settings):
    assert traffic(settings, 4, layers=1)[:2] == traffic(settings, 4, layers=4)[:2]


@pytest.mark.parametrize("settings", [FORCING, LOSSLESS], ids=lambda settings: settings["sampler"])
def test_ticks_in_static_shapes_wait_no_more(settings, monkeypatch):
    monkeypatch.setattr(CorePasses, "run", uncompiled)
    reads, makes, ticks = traffic(settings | {"compile": True}, 4)
    assert reads == 1 and makes <= traffic(settings, 4)[1] and ticks > 10


@pytest.mark.parametrize("settings", [FORCING, LOSSLESS], ids=lambda settings: settings["sampler"])
def test_layers_add_no_kernels_around_compiled_passes(settings, monkeypatch):
    """All that a layer of the core needs is in the compiled code, or in the CUDA graph."""
    eager = kernels(settings, 1), kernels(settings, 4)
    monkeypatch.setattr(CorePasses, "run", nothing)
    around = kernels(settings | {"compile": True}, 1), kernels(settings | {"compile": True}, 4)
    assert around[0] == around[1] < eager[0] < eager[1]


def test_it_counts():
    x = torch.arange(4)
    with counted() as none:
        _ = (x + x)[1:].sum()
    with counted() as some:
        _ = x[x > 1], x.tolist(), torch.tensor([1, 2]), bool(x.any())
    assert (none.reads, none.makes, none.kernels) == (0, 0, 2)
    assert some.reads >= 3 and some.makes == 1
