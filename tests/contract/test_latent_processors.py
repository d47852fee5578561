"""Each processor against its equation, computed independently, and which positions it leaves alone."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_diffusion_forcing import (
    LATENT_PROCESSORS,
    AndersonAcceleration,
    ContinuousCompute,
    EmbeddingMomentum,
    LatentMomentum,
    LatentProcessor,
    LatentProcessorList,
    Refinement,
    StateNoise,
    latent_processor,
    register_latent_processor,
)
from hf_diffusion_forcing.randomness import fold_in

NAMES = sorted(LATENT_PROCESSORS)


def refinement(last=None, *, fresh, model=None, **values):
    """A tick; what `last` remembered moves in."""
    fresh = torch.tensor(fresh)
    batch, width = fresh.shape
    values = {"steps": (~fresh).long() * 4, "before": None} | values
    return Refinement(
        positions=torch.arange(width).repeat(batch, 1) + 7,
        input_ids=torch.zeros(batch, width, dtype=torch.long),
        rows=torch.arange(batch)[:, None].expand(batch, width),
        fresh=fresh,
        recurrences=4,
        budget=32,
        seeds=torch.arange(batch) + 11,
        model=model,
        memory={} if last is None else last.remembered,
        **values,
    )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


METHODS = ["process_embedding", "process_start", "process_state", "process_refined"]
USED = {
    "embedding_momentum": "process_embedding",
    "continuous_compute": "process_start",
    "state_noise": "process_state",
    "latent_momentum": "process_refined",
    "anderson": "process_refined",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [None, *NAMES])
def test_what_a_processor_does_not_say_is_the_identity(name, method):
    processor = LatentProcessor() if name is None else latent_processor(name)
    value = normal(1, 2, 3)
    if USED.get(name) == method:
        assert vars(LATENT_PROCESSORS[name])[method] is not vars(LatentProcessor)[method]
    else:
        assert getattr(processor, method)(value, refinement(fresh=[[False, True]])) is value


@pytest.mark.parametrize("name", NAMES)
def test_what_was_given_stays_as_it_was(name, tiny):
    """Other hooks and the sampler hold on to the same tensors."""
    method, processor = USED[name], latent_processor(name)
    first, second = normal(1, 3, 32), normal(1, 3, 32, seed=1)
    kept = first.clone(), second.clone()
    last = refinement(fresh=[[True, True, True]], model=tiny, before=normal(1, 3, 32, seed=2))
    getattr(processor, method)(first, last)
    now = refinement(last, fresh=[[False, False, True]], model=tiny, before=first)
    changed = getattr(processor, method)(second, now)
    assert torch.equal(first, kept[0]) and torch.equal(second, kept[1])
    assert not torch.equal(changed, second)
    assert changed.dtype == second.dtype and changed.shape == second.shape


def test_embedding_momentum_mixes_with_the_last_ticks_mixture():
    ticks = [normal(1, 2, 3, seed=tick).double() for tick in range(3)]
    processor, last, outputs = EmbeddingMomentum(eta=0.3), None, []
    for number, e in enumerate(ticks):
        last = refinement(last, fresh=[[number == 0] * 2])
        outputs.append(processor.process_embedding(e, last))
    mixed = ticks[0]
    for e, output in zip(ticks, outputs, strict=True):
        mixed = 0.7 * e + 0.3 * mixed
        torch.testing.assert_close(output, mixed)


def test_embedding_momentum_leaves_new_positions_alone():
    processor, e = EmbeddingMomentum(eta=0.3), normal(1, 2, 3)
    last = refinement(fresh=[[True, True]])
    last.remember("embedding_momentum.embedding", torch.full((1, 2, 3), math.nan))
    now = refinement(last, fresh=[[False, True]])
    output = processor.process_embedding(e, now)
    assert output[0, 0].isnan().all()
    assert torch.equal(output[0, 1], e[0, 1])
    assert now.recall("embedding_momentum.embedding") is not now.remembered["embedding_momentum.embedding"]
    assert torch.equal(now.remembered["embedding_momentum.embedding"][0, 1], e[0, 1])


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("constant", [0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.4, 0.3, 0.0, 0.0]),
        ("square_root", [0.4, 0.4 * math.sqrt(0.75), 0.0, 0.0]),
        ("dampened", [0.4, 0.4 / 9, 0.4 / 33, 0.4 / 41]),
    ],
)
def test_state_noise(tiny, schedule, share):
    """At 0, 8, 32 and 40 recurrences of a budget of 32."""
    state, steps = normal(2, 4, 32), torch.tensor([[0, 8, 32, 40]] * 2)
    now = refinement(fresh=[[True, False, False, False]] * 2, model=tiny, steps=steps)
    output = StateNoise(0.4, schedule).process_state(state, now)
    noise = tiny.initialize_state(state, now.positions, fold_in(now.seeds, steps + 1), 1.0)
    b = torch.tensor(share)[:, None]
    torch.testing.assert_close(output, (1 - b) * state + b * noise)
    assert noise.std() > 0.1


def test_state_noise_is_drawn_anew_for_each_recurrence_row_and_position(tiny):
    state = torch.zeros(2, 2, 32)
    drawn = []
    for count in (0, 4):
        now = refinement(fresh=[[False, False]] * 2, model=tiny, steps=torch.full((2, 2), count))
        drawn += StateNoise(1.0).process_state(state, now).flatten(0, 1)
        alone = refinement(fresh=[[False]], model=tiny, steps=torch.full((1, 1), count))
        assert torch.equal(StateNoise(1.0).process_state(state[:1, :1], alone)[0, 0], drawn[-4])
    correlation = np.corrcoef(torch.stack(drawn).numpy()) - np.eye(8)
    assert np.abs(correlation).max() < 0.8
    start = tiny.initialize_state(state, now.positions, now.seeds, 1.0).flatten(0, 1)
    assert not any(torch.equal(one, other) for one in start for other in drawn)


def test_state_noise_works_in_float32(tiny):
    """A share as small as 0.001 would vanish next to 1 in bfloat16; the mixture is rounded once."""
    state = torch.full((1, 1, 32), 1.0, dtype=torch.bfloat16)
    now = refinement(fresh=[[True]], model=tiny)
    noise = tiny.initialize_state(state, now.positions, fold_in(now.seeds, now.steps + 1), 1.0).float()
    for beta in (0.3, 0.001):
        output = StateNoise(beta, "linear").process_state(state, now)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, torch.lerp(state.float(), noise, beta).bfloat16())


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_continuous_compute_takes_the_state_on_the_left(fresh):
    state = normal(len(fresh), 5, 2)
    output = ContinuousCompute().process_start(state, refinement(fresh=fresh))
    for row, columns in enumerate(fresh):
        source = None
        for column, is_fresh in enumerate(columns):
            source = source if is_fresh else column
            expected = column if source is None else source
            assert torch.equal(output[row, column], state[row, expected])


def test_latent_momentum():
    before, state = normal(1, 2, 3), normal(1, 2, 3, seed=1)
    now = refinement(fresh=[[False, True]], before=before)
    output = LatentMomentum(mu=0.4).process_refined(state, now)
    torch.testing.assert_close(output[0, 0], state[0, 0] + 0.4 * (state[0, 0] - before[0, 0]))
    assert torch.equal(output[0, 1], state[0, 1])


def two_ticks(x_before, g_before, x, g, dtype=torch.float32, **second):
    """Anderson's output in the second of two ticks of one row, from arrays [width, channels]."""
    processor = AndersonAcceleration()
    x_before, g_before, x, g = (torch.tensor(np.array([a])).to(dtype) for a in (x_before, g_before, x, g))
    last = refinement(fresh=[[True] * x.shape[1]], before=x_before)
    assert processor.process_refined(g_before, last) is g_before
    now = refinement(last, before=x, **{"fresh": [[False] * x.shape[1]]} | second)
    return processor.process_refined(g, now)[0]


def test_anderson_minimises_the_mixed_residual():
    """s = (1 - a) g + a g_before, with the a that makes (1 - a) f + a f_before shortest, found by least squares."""
    x_before, g_before, x, g = np.random.default_rng(0).normal(size=(4, 3, 6))
    f_before, f = g_before - x_before, g - x
    output = two_ticks(x_before, g_before, x, g)
    for column in range(3):
        (a,), *_ = np.linalg.lstsq((f[column] - f_before[column])[:, None], f[column], rcond=None)
        expected = (1 - a) * g[column] + a * g_before[column]
        np.testing.assert_allclose(output[column].numpy(), expected, rtol=1e-4, atol=1e-5)


@given(
    rate=st.floats(-0.9, 0.9),
    target=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_anderson_solves_a_uniform_contraction_at_once(rate, target, seed):
    """g(x) = target + rate (x - target): two pairs are enough for the fixed point."""
    target = np.array(target)
    x_before = target + 1 + np.random.default_rng(seed).random((1, 4))
    x = target + rate * (x_before - target)
    g = target + rate * (x - target)
    np.testing.assert_allclose(two_ticks(x_before, x, x, g)[0].numpy(), target, atol=2e-3)


def test_anderson_falls_back():
    """Where its equation has no sound answer, or the last tick was of another fixed point, the state stays."""
    x_before, g_before, x, g = np.random.default_rng(1).normal(size=(4, 4, 6))
    untouched = torch.tensor(g, dtype=torch.float32)
    free = two_ticks(x_before, g_before, x, g)
    assert (free != untouched).any(-1).all()

    g_same = g.copy()
    g_same[1] = x[1] + (g_before[1] - x_before[1])  # the same residual again: nothing to divide by
    g_same[2] = x[2] + (g_before[2] - x_before[2]) * 1.001  # nearly so
    output = two_ticks(x_before, g_before, x, g_same)
    assert torch.equal(output[1:3], torch.tensor(g_same[1:3], dtype=torch.float32))
    assert torch.equal(output[[0, 3]], free[[0, 3]])

    steps = torch.full((1, 4), 4)
    output = two_ticks(x_before, g_before, x, g, fresh=[[False, False, False, True]], steps=steps)
    assert torch.equal(output[3], untouched[3]) and torch.equal(output[:3], free[:3])

    steps = torch.tensor([[4, 0, 8, 4]])  # the second position's token has just changed
    output = two_ticks(x_before, g_before, x, g, steps=steps)
    assert torch.equal(output[1], untouched[1]) and torch.equal(output[[0, 2, 3]], free[[0, 2, 3]])

    for broken in (math.nan, math.inf):
        x_broken, g_broken = x_before.copy(), g_before.copy()
        x_broken[0, 2], g_broken[1, 3] = broken, broken
        output = two_ticks(x_broken, g_broken, x, g)
        assert torch.equal(output[:2], untouched[:2]) and torch.equal(output[2:], free[2:])


def test_anderson_stays_within_the_states_type():
    """A finite float32 result may be too large for float16."""
    x_before, g_before = np.zeros((1, 2)), np.array([[-60000.0, 3.0]])
    x, g = np.zeros((1, 2)), np.array([[-30000.0, 3.0]])
    x[0, 1], g[0, 1] = 0.0, 60000.0
    mixed = two_ticks(x_before, g_before, x, g)
    output = two_ticks(x_before, g_before, x, g, dtype=torch.float16)
    assert output.dtype == torch.float16 and output.isfinite().all() and mixed.isfinite().all()


def test_anderson_leaves_a_settled_position_alone():
    """At the fixed point residuals are rounding, here of one bit; there is nothing to extrapolate."""
    x = np.random.default_rng(2).normal(size=(1, 64)).astype(np.float32)
    g_before, g = x.copy(), x.copy()
    g_before[:, ::4] = np.nextafter(x, np.float32(9))[:, ::4]
    for start in (1, 2, 3):
        g[:, start::4] = np.nextafter(x, np.float32(9))[:, start::4]
    assert np.array_equal(two_ticks(x, g_before, x, g).numpy(), g)


@dataclass
class Calls(LatentProcessor):
    """A processor of a user's own, without a name: adds its number to every value, after doubling it."""

    number: float

    def _change(self, value, refinement):
        return 2 * value + self.number

    process_embedding = process_start = process_state = process_refined = _change


@pytest.mark.parametrize("method", METHODS)
def test_a_list_applies_its_items_in_order(method):
    processors = LatentProcessorList([Calls(1.0), Calls(10.0)])
    value = torch.ones(1, 2, 3)
    assert getattr(processors, method)(value, refinement(fresh=[[True, True]])).unique().tolist() == [16.0]
    assert getattr(LatentProcessorList(), method)(value, None) is value


def test_an_item_sees_what_the_one_before_it_made():
    """Momentum in a list remembers its own mixture, whatever follows it."""
    processors = LatentProcessorList([EmbeddingMomentum(0.5), Calls(0.0)])
    one = torch.ones(1, 1, 2)
    last = refinement(fresh=[[True]])
    assert processors.process_embedding(one, last).tolist() == [[[2.0, 2.0]]]
    assert processors.process_embedding(3 * one, refinement(last, fresh=[[False]])).tolist() == [[[4.0, 4.0]]]


@pytest.mark.parametrize("name", NAMES)
def test_round_trips(name):
    defaults = latent_processor(name)
    changed = {
        key: value * 0.5 if isinstance(value, float) else {"constant": "linear"}[value]
        for key, value in vars(defaults).items()
    }
    for processor in (defaults, latent_processor({"name": name} | changed)):
        stored = json.loads(json.dumps(processor.to_dict()))
        assert latent_processor(stored) == processor
        assert type(latent_processor(stored)) is LATENT_PROCESSORS[name]
    assert stored == {"name": name} | changed


def test_lists_round_trip():
    processors = latent_processor(["anderson", {"name": "state_noise", "beta": 0.5}, LatentMomentum(0.25)])
    assert processors == [AndersonAcceleration(), StateNoise(0.5), LatentMomentum(0.25)]
    stored = json.loads(json.dumps(processors.to_list()))
    assert stored[1] == {"name": "state_noise", "beta": 0.5, "schedule": "constant"}
    assert latent_processor(stored) == processors
    assert isinstance(latent_processor(()), LatentProcessorList)


def test_your_own_processor():
    own = Calls(1.0)
    assert latent_processor(own) is own
    with pytest.raises(TypeError, match=r"Calls is not registered.*@register_latent_processor"):
        own.to_dict()
    with pytest.raises(TypeError, match="Calls is not registered"):
        latent_processor(["anderson", own]).to_list()


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    before = dict(LATENT_PROCESSORS)
    yield LATENT_PROCESSORS
    LATENT_PROCESSORS.clear()
    LATENT_PROCESSORS.update(before)


def test_register(registry):
    @register_latent_processor
    @dataclass
    class Shift(LatentProcessor):
        name: ClassVar[str] = "shift"
        by: float = 1.0

        def process_state(self, state, refinement):
            return state + self.by

    assert latent_processor({"name": "shift", "by": 2.0}).process_state(torch.zeros(1), None).item() == 2.0
    assert Shift().to_dict() == {"name": "shift", "by": 1.0}
    with pytest.raises(TypeError, match="Calls has no name"):
        register_latent_processor(Calls)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("state_nois", ValueError, "latent_processor='state_nois' is unknown; did you mean 'state_noise'"),
        ({"name": "state_noise", "bta": 1}, ValueError, "no parameter 'bta'; did you mean 'beta'"),
        ({"name": "continuous_compute", "mu": 1}, ValueError, "no parameter 'mu'; it has none"),
        ({"beta": 1}, ValueError, "has no 'name'"),
        (None, TypeError, "latent_processor=None must be a name"),
        (StateNoise, TypeError, "an instance of LatentProcessor"),
        (["anderson", ["anderson"]], TypeError, r"latent_processor=\['anderson'\] must be a name"),
        ({"name": "state_noise", "beta": 1.5}, ValueError, "beta=1.5 must be between 0 and 1"),
        ({"name": "state_noise", "beta": "some"}, TypeError, "beta='some' must be a number"),
        (
            {"name": "state_noise", "schedule": "liner"},
            ValueError,
            "schedule='liner' is unknown; did you mean 'linear'",
        ),
        ({"name": "state_noise", "schedule": None}, ValueError, "schedule=None is unknown"),
        ({"name": "embedding_momentum", "eta": -0.1}, ValueError, "eta=-0.1"),
        ({"name": "embedding_momentum", "eta": math.nan}, ValueError, "eta=nan"),
        ({"name": "latent_momentum", "mu": 2}, ValueError, "mu=2 must be between 0 and 1"),
        ({"name": "latent_momentum", "mu": True}, TypeError, "mu=True must be a number"),
    ],
)
def test_bad_input(spec, error, message):
    with pytest.raises(error, match=message):
        latent_processor(spec)
