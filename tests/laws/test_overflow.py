"""Law 3 where values overflow: what is not finite in one row changes nothing in the rows beside it."""

import pytest
import torch

from hf_diffusion_forcing.cache import RecurrentDepthCache
from hf_diffusion_forcing.generation.loop import Loop
from hf_diffusion_forcing.generation.samplers import SAMPLERS
from hf_diffusion_forcing.settings.sampler_config import sampler_config_class
from support.rows import CPU, row

BROKEN = 60
"""A token whose embedding is made NaN. It stands at the end of one prompt, so that row is never finite."""
SETTINGS = {
    "diffusion_forcing": {"wavefront": 6, "headway": 1, "inner_recurrence": 1, "exit_threshold": 0.05},
    "adaptive": {"exit_threshold": 0.05},
    "speculative_wavefront": {"draft_depth": 1, "second_draft_depth": 2},
}
PROMPTS = {"sound": [3, 1, 4, 1, 5, 9, 2, 6], "broken": [7, 2, BROKEN], "other": [2, 7, 1] * 5}


def loop_of(model, name):
    config = sampler_config_class(name)(**SETTINGS[name]).resolve(model.config.mean_recurrence)
    cache = model.new_cache(config.deepest, config.kv_sharing)
    return Loop(SAMPLERS[name](model, cache, config, CPU), cache)


def decode(model, sampler, joining):
    """The ids of rows that join after some ticks each, by the names of their prompts."""
    loop = loop_of(model, sampler)
    rows = {name: row(PROMPTS[name], 20, seed, False) for seed, name in enumerate(PROMPTS) if name in joining}
    for tick in range(1000):
        if new := [each for name, each in rows.items() if joining[name] == tick]:
            loop.join(new)
        if not loop.rows and tick >= max(joining.values()):
            break
        if loop.rows:
            loop.tick()
    return {name: each.ids for name, each in rows.items()}


@pytest.fixture
def overflowing(tiny):
    """A model with non-finite embeddings: of `BROKEN`, and of tokens that "sound" and "other" have only as drafts."""
    embedded = set()
    table = tiny.transformer.wte
    hook = table.register_forward_pre_hook(lambda module, args: embedded.update(args[0].flatten().tolist()))
    finite = [name for name in PROMPTS if name != "broken"]
    texts = decode(tiny, "diffusion_forcing", dict.fromkeys(finite, 0))
    hook.remove()
    committed = set().union(*texts.values())
    for sampler in ("adaptive", "speculative_wavefront"):
        committed.update(*decode(tiny, sampler, dict.fromkeys(finite, 0)).values())
    only_drafted = embedded - committed
    assert only_drafted and BROKEN not in committed
    with torch.no_grad():
        tiny.lm_head.weight = torch.nn.Parameter(tiny.lm_head.weight.clone())
        table.weight[[BROKEN, *only_drafted]] = float("nan")
    return tiny


@pytest.mark.parametrize("sampler", SETTINGS)
@torch.no_grad()
def test_a_row_that_is_never_finite_changes_no_other(overflowing, sampler):
    """Whichever joins first, and however far the others are by then."""
    alone = {name: decode(overflowing, sampler, {name: 0})[name] for name in PROMPTS}
    for late in (0, 3, 8):
        for joining in (
            {"sound": 0, "broken": late, "other": late + 1},
            {"broken": 0, "sound": late, "other": 1},
            {"other": 0, "broken": 0, "sound": late},
        ):
            assert decode(overflowing, sampler, joining) == alone, joining


@torch.no_grad()
def test_the_seats_of_finite_rows_are_not_scrubbed(tiny, monkeypatch):
    tiny.lm_head.weight = torch.nn.Parameter(tiny.lm_head.weight.clone())
    tiny.transformer.wte.weight[BROKEN] = float("nan")
    scrubbed, scrub = [], RecurrentDepthCache.scrub

    def noted(cache, seat):
        scrubbed.append(seat)
        scrub(cache, seat)

    monkeypatch.setattr(RecurrentDepthCache, "scrub", noted)
    loop = loop_of(tiny, "speculative_wavefront")
    loop.join([row(PROMPTS[name], 20, 0, False) for name in ("sound", "broken")])
    while loop.rows:
        loop.tick()
    # "sound" has dropped drafts, and its seat is 0 unless "broken" has ended.
    assert loop.sampler.stats.wasted_recurrences
    assert 0 not in scrubbed
