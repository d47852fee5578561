"""Each criterion against its equation, computed independently in float64, and the rules all of them keep."""

import json
import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hf_diffusion_forcing import (
    EXIT_CRITERIA,
    ArgmaxStabilityCriterion,
    CosineCriterion,
    EntropyCriterion,
    ExitCriterion,
    ExitCriterionList,
    FixedCriterion,
    KLCriterion,
    LatentAccelerationCriterion,
    LatentDifferenceCriterion,
    MinPKLCriterion,
    Refinement,
    TokenStabilityCriterion,
    exit_criterion,
    register_exit_criterion,
)

# The gate and the probe are a model's own: tests/families and test_heads_file.py have models with one.
OWN = {"exit_gate", "learned"}
NAMES = sorted(EXIT_CRITERIA.keys() - OWN)
DISTANCES = [name for name in NAMES if hasattr(EXIT_CRITERIA[name], "threshold")]
ACROSS_TICKS = ["argmax_stability", "entropy", "kl", "latent_acceleration", "min_p_kl", "settling", "token_stability"]
NAN, INF = math.nan, math.inf
# Nothing that is finite is too far apart for these.
EAGER = {
    "argmax_stability": {"patience": 1, "margin": 0.0},
    "fixed": {"steps": 1},
    "token_stability": {"patience": 1},
} | {name: {"threshold": 1e9} for name in DISTANCES}


BEFORE_IT = torch.tensor([[[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]]])
STATE = torch.tensor([[[1.1, 2.0, 2.9], [1.0, 0.2, 0.0]]])


def refinement(last=None, **values):
    """A tick of one row of two positions and three channels, a vocabulary of three; what `last` remembered moves in."""
    values = {
        "before": BEFORE_IT,
        "states": STATE,
        "logits": torch.tensor([[[2.0, 1.0, 0.0], [0.0, 1.0, 0.5]]]),
        "predictions": torch.tensor([[0, 1]]),
        "fresh": torch.full((1, 2), last is None),
        "recurrences": 4,
        "budget": 32,
    } | values
    values = {key: torch.as_tensor(value) if isinstance(value, list) else value for key, value in values.items()}
    batch, width = values["fresh"].shape
    values = {"steps": torch.zeros(batch, width, dtype=torch.long)} | values
    return Refinement(
        positions=torch.arange(width).repeat(batch, 1),
        input_ids=torch.zeros(batch, width, dtype=torch.long),
        rows=torch.arange(batch)[:, None].expand(batch, width),
        seeds=torch.arange(batch),
        model=None,
        memory={} if last is None else last.remembered,
        **values,
    )


def ticks(criterion, *values):
    """The verdicts on consecutive ticks, as lists."""
    last, verdicts = None, []
    for value in values:
        last = refinement(last, **value)
        verdicts.append(criterion(last).tolist())
    return verdicts


def around(criterion_class, distance, last, now, **parameters):
    """Whether the criterion turns exactly at `distance` [width], in the second of two ticks."""
    for column, value in enumerate(distance):
        for factor, expected in ((1.001, True), (0.999, False)):
            verdicts = ticks(criterion_class(threshold=value * factor, **parameters), last, now)
            assert verdicts[1][0][column] is expected


def softmax(logits):
    exp = np.exp(np.asarray(logits, dtype=np.float64))
    return exp / exp.sum(-1, keepdims=True)


BEFORE = np.array([[[0.5, -1.0, 2.0], [3.0, 0.1, 0.0]]])
STATES = np.array([[[0.7, -1.2, 2.1], [2.0, 1.0, -1.0]]])
EARLIER = np.array([[[0.1, 0.1, 0.4], [-1.0, 0.0, 2.0]]])
LOGITS = np.array([[[2.0, 1.0, -4.0], [0.0, 1.0, 0.5]]])
LOGITS_BEFORE = np.array([[[1.0, 1.5, -1.0], [0.2, 0.9, 0.4]]])


def tensors(**arrays):
    return {key: torch.tensor(array, dtype=torch.float32) for key, array in arrays.items()}


def test_latent_difference():
    distance = np.linalg.norm(STATES - BEFORE, axis=-1) / np.linalg.norm(STATES, axis=-1)
    around(LatentDifferenceCriterion, distance[0], {}, tensors(states=STATES, before=BEFORE))


def test_latent_acceleration():
    change = (STATES - BEFORE) - (BEFORE - EARLIER)
    distance = np.linalg.norm(change, axis=-1) / np.linalg.norm(STATES, axis=-1)
    last, now = tensors(states=BEFORE, before=EARLIER), tensors(states=STATES, before=BEFORE)
    around(LatentAccelerationCriterion, distance[0], last, now)


def test_cosine():
    product = np.linalg.norm(STATES, axis=-1) * np.linalg.norm(BEFORE, axis=-1)
    distance = 1 - (STATES * BEFORE).sum(-1) / product
    around(CosineCriterion, distance[0], {}, tensors(states=STATES, before=BEFORE))


def test_entropy():
    p, q = softmax(LOGITS_BEFORE), softmax(LOGITS)
    distance = np.abs((p * np.log(p)).sum(-1) - (q * np.log(q)).sum(-1))
    around(EntropyCriterion, distance[0], tensors(logits=LOGITS_BEFORE), tensors(logits=LOGITS))


def test_kl():
    p, q = softmax(LOGITS_BEFORE), softmax(LOGITS)
    distance = (p * np.log(p / q)).sum(-1)
    around(KLCriterion, distance[0], tensors(logits=LOGITS_BEFORE), tensors(logits=LOGITS))


def test_min_p_kl():
    """The first position drops its third token, the second keeps all three."""
    p, q = softmax(LOGITS_BEFORE)[0], softmax(LOGITS)[0]
    distance = []
    for kept, row in ((2, 0), (3, 1)):
        a, b = p[row, :kept] / p[row, :kept].sum(), q[row, :kept] / q[row, :kept].sum()
        distance.append((a * np.log(a / b)).sum())
    around(MinPKLCriterion, distance, tensors(logits=LOGITS_BEFORE), tensors(logits=LOGITS), min_p=0.2)


def test_min_p_kl_sees_a_token_lose_its_probability():
    """On the likely tokens of now alone, the two distributions are the same."""
    last = {"logits": [[[9.0, 0.0, 0.0]] * 2]}
    now = {"logits": [[[-9.0, 0.0, 0.0]] * 2]}
    assert ticks(MinPKLCriterion(threshold=1.0), last, now)[1] == [[False, False]]
    assert ticks(MinPKLCriterion(threshold=1.0), now, last)[1] == [[False, False]]


def test_min_p_zero_is_kl():
    last, now = tensors(logits=LOGITS_BEFORE), tensors(logits=LOGITS)
    for threshold in (0.01, 0.02, 0.05, 0.1, 0.5):
        assert ticks(MinPKLCriterion(threshold, min_p=0.0), last, now) == ticks(KLCriterion(threshold), last, now)


def test_token_stability_looks_at_the_chosen_token():
    tokens = [[5, 1], [5, 2], [5, 2], [6, 2], [6, 2]]
    noise = torch.randn(5, 1, 2, 3)  # the raw logits do not matter
    verdicts = ticks(
        TokenStabilityCriterion(patience=2),
        *({"predictions": [row], "logits": logits} for row, logits in zip(tokens, noise, strict=True)),
    )
    assert verdicts == [[[False, False]], [[False, False]], [[True, False]], [[False, True]], [[False, True]]]


def test_argmax_stability_looks_at_the_raw_logits():
    wide, narrow, other = [3.0, 0.0, 0.0], [1.0, 0.9, 0.0], [0.0, 3.0, 0.0]
    rows = [[wide, wide], [wide, narrow], [narrow, narrow], [wide, other], [other, other]]
    predictions = [[[tick, tick]] for tick in range(5)]  # the chosen tokens do not matter
    values = [{"logits": [row], "predictions": chosen} for row, chosen in zip(rows, predictions, strict=True)]
    verdicts = ticks(ArgmaxStabilityCriterion(patience=1, margin=0.2), *values)
    assert verdicts == [[[False, False]], [[True, False]], [[False, False]], [[True, False]], [[False, True]]]


def test_argmax_stability_margin_is_the_gap_of_probabilities():
    p = softmax(LOGITS)[0, 0]
    values = [tensors(logits=LOGITS)] * 2
    for factor, expected in ((0.999, True), (1.001, False)):
        criterion = ArgmaxStabilityCriterion(patience=1, margin=float((p[0] - p[1]) * factor))
        assert ticks(criterion, *values)[1][0][0] is expected


def test_fixed_counts_this_ticks_recurrences():
    steps = torch.tensor([[0, 4]])
    assert FixedCriterion(steps=8)(refinement(steps=steps)).tolist() == [[False, True]]
    assert FixedCriterion(steps=9)(refinement(steps=steps)).tolist() == [[False, False]]
    assert FixedCriterion(steps=4)(refinement(steps=steps)).tolist() == [[True, True]]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_again_has_converged(name):
    """Two equal ticks; what comes back from the first is what the second is compared with."""
    same = {"states": torch.ones(1, 2, 3), "before": torch.ones(1, 2, 3)}
    assert ticks(exit_criterion({"name": name} | EAGER[name]), same, same)[1] == [[True, True]]


@pytest.mark.parametrize("name", ACROSS_TICKS)
def test_a_first_observation_never_converges(name):
    """In the first tick, and where a later tick has a position that is new: what is recalled there is not its own."""
    criterion = exit_criterion({"name": name} | EAGER[name])
    calmer, still = ({"before": STATE + share * (BEFORE_IT - STATE)} for share in (0.5, 0.25))
    assert ticks(criterion, {}, calmer | {"fresh": [[False, True]]}) == [[[False, False]], [[True, False]]]
    assert ticks(criterion, {}, calmer | {"fresh": [[True, True]]}, still)[1:] == [[[False, False]], [[True, True]]]


@pytest.mark.parametrize("name", DISTANCES)
def test_threshold_zero_is_never(name):
    """Not even where a distance of nothing rounds to less than nothing."""
    generator = torch.Generator().manual_seed(0)
    states, change = torch.randn(2, 1, 400, 30, generator=generator)
    last = {"states": states, "before": states, "logits": states}
    now = {"states": states, "before": states * 1.5, "logits": states + 1e-4 * change}
    values = [tick | {"fresh": torch.full((1, 400), tick is last)} for tick in (last, now, now)]
    verdicts = ticks(exit_criterion(name, threshold=0.0), *values)
    assert not torch.tensor(verdicts).any()


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_has_not_converged(name, broken):
    """The first position is broken throughout; the second is fine, and only recovers a tick after it breaks too."""
    criterion = exit_criterion({"name": name} | EAGER[name])
    fine = torch.ones(1, 2, 3)
    state, logits, all_broken = fine.clone(), fine.clone(), torch.full((1, 2, 3), broken)
    state[0, 0, 1] = broken
    # One -inf is a masked token, not a broken readout.
    logits[0, 0, slice(None) if broken == -INF else 1] = broken
    half = {"states": state, "before": state, "logits": logits + torch.tensor([0.0, 1.0, 0.0])}
    whole = half | {"states": fine, "before": fine, "logits": fine + torch.tensor([0.0, 1.0, 0.0])}
    none = {"states": all_broken, "before": all_broken, "logits": all_broken}
    verdicts = ticks(criterion, half, half, none, whole, whole)
    assert verdicts[1] == [[False, True]]
    assert verdicts[2] == [[False, False]]
    if name in ACROSS_TICKS:
        assert verdicts[3] == [[False, False]]
    assert verdicts[4] == [[True, True]]


@pytest.mark.parametrize("name", ["argmax_stability", "entropy", "kl", "min_p_kl"])
def test_a_masked_token_is_no_obstacle(name):
    logits = {"logits": [[[1.0, -INF, 3.0]] * 2]}
    assert ticks(exit_criterion({"name": name} | EAGER[name]), logits, logits)[1] == [[True, True]]


def test_a_token_unmasked_from_one_tick_to_the_next():
    masked, free = {"logits": [[[1.0, -INF, 3.0]] * 2]}, {"logits": [[[1.0, 2.0, 3.0]] * 2]}
    p = softmax([1.0, 2.0, 3.0])
    rest = softmax([1.0, 3.0])
    expected = (rest * np.log(rest / p[[0, 2]])).sum()
    around(KLCriterion, [expected], masked, free)
    assert ticks(KLCriterion(1e9), free, masked)[1] == [[False, False]]


FLOATS = st.floats(width=32) | st.sampled_from([NAN, INF, -INF, 0.0])
GRID = st_numpy.arrays(np.float32, (1, 2, 3), elements=FLOATS)


@given(st.sampled_from(NAMES), GRID, GRID, GRID, GRID)
def test_any_numbers_give_a_verdict(name, before, states, logits_before, logits):
    criterion = exit_criterion({"name": name} | EAGER[name])
    values = {"before": torch.tensor(before), "states": torch.tensor(states), "logits": torch.tensor(logits)}
    last = refinement(before=values["states"], states=values["before"], logits=torch.tensor(logits_before))
    criterion(last)
    now = refinement(last, **values)
    verdict = criterion(now)
    assert verdict.dtype == torch.bool and verdict.shape == (1, 2)
    # A readout is broken when no highest logit can be named; single tokens may be masked with -inf.
    broken = ~np.isfinite(logits.max(-1)) if criterion.needs_logits else ~np.isfinite(states).all(-1)
    assert not (verdict.numpy() & broken).any()


@pytest.mark.parametrize("name", DISTANCES)
def test_bfloat16_is_compared_in_float32(name):
    distances = []
    for dtype in (torch.bfloat16, torch.float32):
        last = tensors(states=BEFORE, before=EARLIER, logits=LOGITS_BEFORE)
        now = tensors(states=STATES, before=BEFORE, logits=LOGITS)
        first, second = ({key: x.bfloat16().to(dtype) for key, x in tick.items()} for tick in (last, now))
        criterion, first = exit_criterion(name), refinement(**first)
        criterion(first)
        distances.append(criterion.distance(refinement(first, **second)))
    assert distances[0].dtype == torch.float32
    assert distances[0].tolist() == distances[1].tolist()


@dataclass
class Says(ExitCriterion):
    """A criterion of a user's own, without a name; it answers what it is told."""

    answer: list
    needs_logits: ClassVar[bool] = False
    asked: int = 0

    def __call__(self, refinement):
        self.asked += 1
        return torch.tensor([self.answer])


@pytest.mark.parametrize(("mode", "expected"), [("any", [True, True, False]), ("all", [True, False, False])])
def test_lists(mode, expected):
    first, second = Says([True, True, False]), Says([True, False, False])
    assert ExitCriterionList([first, second], mode)(refinement()).tolist() == [expected]
    assert (first.asked, second.asked) == (1, 1)


def test_a_list_nests_and_shares_a_tick():
    """Criteria of the same kind do not disturb each other's memory."""
    both = exit_criterion({"all": ["kl", {"any": ["min_p_kl", {"name": "kl", "threshold": 0.0}]}]})
    values = tensors(logits=LOGITS)
    assert ticks(both, values, values) == [[[False, False]], [[True, True]]]
    assert both.needs_logits and not ExitCriterionList([FixedCriterion(), CosineCriterion()]).needs_logits


@pytest.mark.parametrize("name", NAMES)
def test_round_trips(name):
    defaults = exit_criterion(name)
    changed = {key: value * 0.5 if isinstance(value, float) else value + 1 for key, value in vars(defaults).items()}
    for criterion in (defaults, exit_criterion({"name": name} | changed)):
        stored = json.loads(json.dumps(criterion.to_dict()))
        assert exit_criterion(stored) == criterion
        assert type(exit_criterion(stored)) is EXIT_CRITERIA[name]
    assert changed and stored == {"name": name} | changed


def test_lists_round_trip():
    criterion = exit_criterion(["fixed", {"all": ["kl", {"name": "cosine", "threshold": 0.5}]}])
    assert criterion.to_dict() == {
        "any": [
            {"name": "fixed", "steps": 8},
            {"all": [{"name": "kl", "threshold": 5e-4}, {"name": "cosine", "threshold": 0.5}]},
        ]
    }
    assert exit_criterion(json.loads(json.dumps(criterion.to_dict()))) == criterion


def test_threshold_takes_the_criterions_place_and_leaves_it_alone():
    given_one = MinPKLCriterion(min_p=0.3)
    assert exit_criterion(given_one, threshold=0.25) == MinPKLCriterion(0.25, min_p=0.3)
    assert given_one == MinPKLCriterion(min_p=0.3)
    assert exit_criterion({"name": "cosine", "threshold": 1.0}, threshold=0.5) == CosineCriterion(0.5)
    assert exit_criterion(given_one) is given_one


def test_your_own_criterion():
    own = Says([True])
    assert exit_criterion(own) is own
    with pytest.raises(TypeError, match=r"Says is not registered.*@register_exit_criterion"):
        own.to_dict()
    with pytest.raises(TypeError, match="Says is not registered"):
        exit_criterion(["kl", own]).to_dict()


def test_a_subclass_does_not_pass_for_its_parent():
    class Wider(CosineCriterion):
        pass

    with pytest.raises(TypeError, match="Wider is not registered"):
        Wider().to_dict()


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    before = dict(EXIT_CRITERIA)
    yield EXIT_CRITERIA
    EXIT_CRITERIA.clear()
    EXIT_CRITERIA.update(before)


def test_register(registry):
    def define(default):
        @register_exit_criterion
        @dataclass
        class EveryOther(ExitCriterion):
            name: ClassVar[str] = "every_other"
            offset: int = default
            seen: int = field(default=0, init=False)

            def __call__(self, refinement):
                return refinement.positions % 2 == self.offset

        return EveryOther

    first = define(0)
    assert exit_criterion("every_other")(refinement()).tolist() == [[True, False]]
    assert first(1).to_dict() == {"name": "every_other", "offset": 1}
    define(1)  # a notebook's cell, run again
    assert exit_criterion("every_other")(refinement()).tolist() == [[False, True]]


def test_register_refuses(registry):
    @dataclass
    class Taken(Says):
        name: ClassVar[str] = "kl"

    class Plain(Says):
        name: ClassVar[str] = "plain"

    with pytest.raises(ValueError, match=r"name='kl' of Taken is taken by KLCriterion"):
        register_exit_criterion(Taken)
    with pytest.raises(TypeError, match="Plain is not a dataclass"):
        register_exit_criterion(Plain)
    with pytest.raises(TypeError, match="Says has no name"):
        register_exit_criterion(Says)
    with pytest.raises(TypeError, match="not a subclass of ExitCriterion"):
        register_exit_criterion(int)
    assert sorted(registry) == sorted([*NAMES, *OWN])


def test_a_required_parameter_is_asked_for(registry):
    @register_exit_criterion
    @dataclass
    class Demanding(Says):
        name: ClassVar[str] = "demanding"

    with pytest.raises(ValueError, match="exit_criterion 'demanding' needs 'answer'"):
        exit_criterion("demanding")


@pytest.mark.parametrize(
    ("spec", "threshold", "error", "message"),
    [
        ("latent_diference", None, ValueError, "did you mean 'latent_difference'"),
        ({"name": "kl", "treshold": 1.0}, None, ValueError, "'kl' has no parameter 'treshold'; did you mean 'thres"),
        ({"threshold": 1.0}, None, ValueError, "has no 'name'; known: argmax_stability"),
        ({"name": ["kl"]}, None, ValueError, r"exit_criterion=\['kl'\] is unknown"),
        (None, None, TypeError, "exit_criterion=None must be a name"),
        (0.03, None, TypeError, "exit_criterion=0.03 must be a name"),
        (CosineCriterion, None, TypeError, "an instance of ExitCriterion"),
        ([], None, ValueError, r"criteria=\[\] is empty"),
        ({"any": []}, None, ValueError, r"criteria=\[\] is empty"),
        ({"any": ["kl"], "all": ["fixed"]}, None, ValueError, "and nothing else"),
        ({"all": "kl"}, None, ValueError, "and nothing else"),
        (["kl", "fixd"], None, ValueError, "did you mean 'fixed'"),
        ("fixed", 0.1, ValueError, "threshold=0.1 does not apply to FixedCriterion"),
        ("token_stability", 0.1, ValueError, "threshold=0.1 does not apply"),
        (["kl", "cosine"], 0.1, ValueError, "parameters in its dict"),
        ("kl", -0.1, ValueError, "threshold=-0.1 must be 0 or more"),
        ("kl", NAN, ValueError, "threshold=nan"),
        ("kl", INF, ValueError, "threshold=inf"),
        ({"name": "cosine", "threshold": "small"}, None, TypeError, "threshold='small' must be a number"),
        ({"name": "min_p_kl", "min_p": 2}, None, ValueError, "min_p=2 must be between 0 and 1"),
        ({"name": "min_p_kl", "threshold": -1}, None, ValueError, "threshold=-1"),
        ({"name": "token_stability", "patience": 0}, None, ValueError, "patience=0 must be at least 1"),
        ({"name": "argmax_stability", "patience": 1.5}, None, TypeError, "patience=1.5 must be an int"),
        ({"name": "argmax_stability", "margin": -1}, None, ValueError, "margin=-1"),
        ({"name": "fixed", "steps": 0}, None, ValueError, "steps=0"),
    ],
)
def test_bad_input(spec, threshold, error, message):
    with pytest.raises(error, match=message):
        exit_criterion(spec, threshold)


def test_bad_lists():
    with pytest.raises(ValueError, match="mode='most'"):
        ExitCriterionList([FixedCriterion()], "most")
    with pytest.raises(TypeError, match="criteria holds 'kl'"):
        ExitCriterionList(["kl"])


def test_remember_wants_an_entry_a_position():
    with pytest.raises(ValueError, match=r"'mine' has shape \(2, 1\).*\(1, 2\)"):
        refinement().remember("mine", torch.zeros(2, 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "any", "all", "threshold", "steps", "margin"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(JSON)
def test_any_json_is_a_criterion_or_a_clear_error(spec):
    try:
        criterion = exit_criterion(spec)
    except (ValueError, TypeError) as error:
        assert str(error)
    else:
        assert exit_criterion(criterion.to_dict()) == criterion
