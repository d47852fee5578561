"""What every recurrence does to a text: against a plain loop over forward(), and what is said of it."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import HrmTextForCausalLM, NanbeigeConfig, NanbeigeForCausalLM, RavenForCausalLM
from hf_diffusion_forcing.evaluation.insight_summary import by_depth, by_token, findings, most_needed, report
from hf_diffusion_forcing.evaluation.inspection import inspect_prompts, inspect_recurrences
from hf_diffusion_forcing.evaluation.measure import recurrences_to_converge
from hf_diffusion_forcing.evaluation.recurrence_insight import VERDICTS, RecurrenceInsight
from hf_diffusion_forcing.evaluation.settling import contraction, drifts, is_settled
from hf_diffusion_forcing.hooks.settling import sway
from support import FAMILIES, left_pad, tiny_config

ROWS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3]]
STEPS = 5
TENSORS = ("changes", "margins", "entropies", "divergences", "sways")


def plain(model, ids, num_steps, seed, **kwargs):
    """States [num_steps + 1, width, channels] and logits [num_steps, width, vocabulary] of one row, by forward()."""
    call = {"seeds": torch.tensor([seed]), "use_cache": False} | kwargs
    states, logits = [], []

    def watch(s, before):
        if not states:
            states.append(before[0])
        states.append(s[0])

    with torch.no_grad():
        model(torch.tensor([ids]), num_steps=num_steps, on_recurrence=watch, **call)
        for depth in range(1, num_steps + 1):
            logits.append(model(torch.tensor([ids]), num_steps=depth, **call).logits[0])
    return torch.stack(states), torch.stack(logits)


def check(insight, states, logits):
    """An insight of one row against a plain loop's."""
    changes = (states[1:] - states[:-1]).norm(dim=-1) / states[1:].norm(dim=-1)
    torch.testing.assert_close(insight.changes, changes, rtol=1e-3, atol=1e-5)
    assert torch.equal(insight.readouts, logits.argmax(-1))
    first, second = logits.topk(2).values.unbind(-1)
    torch.testing.assert_close(insight.margins, first - second, rtol=1e-3, atol=1e-4)
    spread = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(insight.entropies, spread.entropy(), rtol=1e-3, atol=1e-4)
    last = torch.distributions.Categorical(logits=logits[-1:].expand_as(logits))
    torch.testing.assert_close(
        insight.divergences, torch.distributions.kl_divergence(last, spread), rtol=1e-3, atol=1e-4
    )
    steps = range(1, len(logits) + 1)
    for place in range(len(insight)):
        same = [depth for depth in steps if (logits[depth - 1 :, place].argmax(-1) == logits[-1, place].argmax()).all()]
        assert insight.needed[place] == same[0]
        exits = [depth for depth in steps if changes[depth - 1, place] < insight.threshold]
        assert insight.exit_depths[place] == (exits or [len(logits) + 1])[0]


def test_values_are_those_of_a_plain_loop(family):
    """In a padded batch, a few columns at a time; depth k is forward(num_steps=k)."""
    insight = inspect_recurrences(
        family,
        **left_pad(ROWS),
        num_steps=STEPS,
        seed=[7, 8],
        exit_threshold=0.4,
        logits_at_once=4 * family.config.padded_vocab_size,
    )
    assert len(insight) == sum(map(len, ROWS)) and insight.num_steps == STEPS
    assert insight.input_ids.tolist() == [token for row in ROWS for token in row]
    assert insight.rows.tolist() == [0] * 3 + [1] * 7
    assert insight.positions.tolist() == [*range(3), *range(7)]
    for row, ids in enumerate(ROWS):
        check(insight.row(row), *plain(family, ids, STEPS, 7 + row))


def test_a_row_does_not_depend_on_its_batch_or_on_columns_at_once(family):
    whole = inspect_recurrences(family, **left_pad(ROWS), num_steps=STEPS, seed=3)
    for row, ids in enumerate(ROWS):
        for at_once in (1, 10**9):
            alone = inspect_recurrences(
                family, torch.tensor([ids]), num_steps=STEPS, seed=3 + row, logits_at_once=at_once
            )
            assert torch.equal(alone.readouts, whole.row(row).readouts)
            for name in TENSORS:
                torch.testing.assert_close(
                    getattr(alone, name), getattr(whole.row(row), name), rtol=2e-3, atol=1e-4, equal_nan=True
                )


def test_a_bidirectional_prompt_is_read_as_one():
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["hrm_text"]).eval()
    ids, types = ROWS[1], torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    insight = inspect_recurrences(model, torch.tensor([ids]), num_steps=2, token_type_ids=types)
    check(insight, *plain(model, ids, 2, 0, token_type_ids=types))
    causal = inspect_recurrences(model, torch.tensor([ids]), num_steps=2)
    assert not torch.allclose(causal.changes, insight.changes)


# --- the exit criterion ---


def test_exits_are_those_of_the_default_criterion(bundled):
    model, tokenizer = bundled
    ids = tokenizer("Q: Start at 7 + 3 * 3. Last digit?\nA: 7 + 3 = 0.", return_tensors="pt").input_ids
    insight = inspect_recurrences(model, ids, num_steps=16)
    assert (insight.criterion, insight.threshold) == ("latent_difference", 0.03)
    assert torch.equal(insight.exit_depths, recurrences_to_converge(model, ids, limit=16)[0])


def test_other_criteria_see_what_they_see_in_generate():
    ouro = AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"]).eval()
    ids = torch.tensor([ROWS[1]])
    states, logits = plain(ouro, ROWS[1], STEPS, 0)
    gate = inspect_recurrences(ouro, ids, num_steps=STEPS, exit_criterion="exit_gate", exit_threshold=0.6)
    stays = (1 - torch.sigmoid(ouro.exit_gate(states[1:]).float())).cumprod(0)
    assert torch.equal(gate.exits, 1 - stays >= 0.6)
    kl = inspect_recurrences(ouro, ids, num_steps=STEPS, exit_criterion="kl", exit_threshold=0.05)
    log_probs = logits.log_softmax(-1)
    moved = (log_probs[:-1].exp() * (log_probs[:-1] - log_probs[1:])).sum(-1)
    assert not kl.exits[0].any() and torch.equal(kl.exits[1:], moved < 0.05)
    assert gate.exits.any() and kl.exits.any()
    with pytest.raises(ValueError, match="exit gate"):
        inspect_recurrences(AutoModelForCausalLM.from_pretrained(FAMILIES["nanbeige"]), ids, exit_criterion="exit_gate")


# --- settling ---


def test_the_contraction_factor_of_a_geometric_series():
    changes = (0.8 * torch.tensor([0.5, 0.9, 1.0, 1.1]) ** torch.arange(12)[:, None]).float()
    factors = contraction(changes, 1e-9)
    assert factors[0].isnan().all()
    torch.testing.assert_close(factors[1:], torch.tensor([[0.5, 0.9, 1.0, 1.1]]).expand(11, -1), rtol=1e-4, atol=0)
    assert drifts(changes, 1e-9).tolist() == [False, False, True, True]


def test_rounding_is_neither_motion_nor_contraction():
    changes = torch.tensor([1.0, 0.1, 0.01, 1e-3, 1e-7, 3e-7, 1e-7, 4e-7])[:, None]
    factors = contraction(changes, 1e-6)
    torch.testing.assert_close(factors[1:], torch.full((7, 1), 0.1))
    assert not drifts(changes, 1e-6).any()
    assert contraction(torch.zeros(3, 1), 1e-6).eq(0).all() and not drifts(torch.zeros(3, 1), 1e-6).any()
    assert drifts(torch.tensor([[math.nan, 1.0]]), 1e-6).tolist() == [True, False]
    broken = contraction(torch.full((3, 1), math.nan), 1e-6)
    assert broken.isnan().all() and not is_settled(torch.zeros(3, 1), broken).any()


@given(
    seed=st.integers(0, 10_000),
    factor=st.floats(0.05, 0.97),
    depth=st.integers(1, 12),
)
def test_a_settled_choice_of_a_contraction_stays(seed, factor, depth):
    """Where every recurrence moves the state by `factor` times the move before it, the estimate is a proof."""
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 20, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    logits = [(end + (start - end) * factor**k) @ head for k in range(100)]
    settled = is_settled(sway(logits[depth], logits[depth - 1]), torch.full((20,), factor, dtype=torch.float64))
    later = torch.stack([each.argmax(-1) == logits[depth].argmax(-1) for each in logits[depth:]]).all(0)
    assert bool(later[settled].all())


def test_the_sway_is_of_the_rival_that_comes_closest():
    before, now = torch.tensor([[5.0, 3.0, -9.0], [2.0, 2.0, 0.0]]), torch.tensor([[5.0, 4.0, -5.0], [2.0, 2.0, 0.0]])
    # The leads went from 2 to 1 and from 14 to 10; in the second row, two tokens are tied.
    assert sway(now, before).tolist() == [1.0, math.inf]


def test_the_estimate_holds_on_the_bundled_checkpoint(bundled):
    """Readouts called settled are those of far more recurrences; and most are settled early."""
    text = "Q: Start at 7 + 3 * 3. Last digit?\nA: 7 + 3 = 0. 0 * 3 = 0. The answer is 0."
    ids = bundled[1](text, return_tensors="pt").input_ids
    short, long = (inspect_recurrences(bundled[0], ids, num_steps=steps) for steps in (8, 48))
    settled = short.settled[-1]
    assert settled.float().mean() > 0.8
    assert torch.equal(short.readouts[-1][settled], long.readouts[-1][settled])
    assert long.verdicts.count("settled") == len(long) and long.verdicts.count("drifting") == 0
    early, changed = long.overturned
    assert early > 40 * len(long) * 0.8 and changed < 0.02 * early


def rescaled(core, state):
    """A random model with other weights in its core: large ones are far from a contraction.

    Args:
        core: factor on what attention and MLP add.
        state: factor on what the core reads of the state.
    """
    torch.manual_seed(0)
    model = RavenForCausalLM(tiny_config()).eval()
    with torch.no_grad():
        for block in model.transformer.core_block:
            block.attn.proj.weight.mul_(core)
            block.mlp.proj.weight.mul_(core)
        model.transformer.adapter.weight[:, : model.config.n_embd].mul_(state)
    return model


class Letters:
    """A tokenizer of one letter for each id."""

    pad_token_id, padding_side = 0, "left"

    def __call__(self, texts):
        return type("Encoded", (), {"input_ids": [[ord(letter) - 60 for letter in text] for text in texts]})

    def decode(self, ids):
        return "".join(chr(token + 60) for token in ids)


def test_drift_is_named():
    model, ids = rescaled(20, 20), torch.tensor([ROWS[1]])
    insight = inspect_recurrences(model, ids, num_steps=24)
    drifting = [place for place, verdict in enumerate(insight.verdicts) if verdict == "drifting"]
    assert len(drifting) > 4
    for place in drifting:
        assert insight.changes[-1, place] > 0.03
        assert insight.changes[-1, place] > 0.5 * insight.changes[11, place]
    said = " ".join(findings(insight))
    assert f"Drift: at {len(drifting)} of 7" in said and "this does not fall with depth" in said
    assert "This model drifts on these texts" in said
    assert f"(position {drifting[0]} of text 1" in said
    calm = inspect_recurrences(rescaled(1, 0.2), ids, num_steps=24)
    assert "drifting" not in calm.verdicts and "Drift" not in " ".join(findings(calm))


def test_states_that_are_not_finite_are_drifting_not_an_error():
    model = rescaled(20, 20)
    with torch.no_grad():
        model.transformer.core_block[0].norm_1.weight.fill_(math.nan)
    insight = inspect_recurrences(model, torch.tensor([ROWS[0]]), num_steps=4)
    assert insight.verdicts == ["drifting"] * 3
    record = by_depth(insight)[-1]
    assert record["change"] is None and record["settled"] == 0
    assert "Drift: at 3 of 3" in " ".join(findings(insight))
    json.dumps(by_token(insight, Letters()), allow_nan=False)


# --- what is said ---


def test_untrained_shallow_readouts_are_said_so(family):
    """By the model's class, whatever its name."""
    said = " ".join(findings(inspect_recurrences(family, torch.tensor([ROWS[0]]), num_steps=2)))
    untrained = isinstance(family, (HrmTextForCausalLM, NanbeigeForCausalLM))
    assert ("shallow readouts may be untrained" in said) == untrained


def test_nanbeige_with_losses_of_all_loops_has_readable_states():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    for weights, readable in ((None, False), ([0.0], False), ([0.5], True)):
        model = NanbeigeForCausalLM(NanbeigeConfig(**sizes, **heads, loop_loss_weights=weights))
        assert model.has_readable_shallow_states is readable


def test_the_report_holds_every_number(tiny):
    tiny.generation_config.eos_token_id = None
    insight = inspect_prompts(tiny, Letters(), ["ABC", "LOOPED"], max_new_tokens=3, num_steps=STEPS, progress=False)
    record = json.loads(json.dumps(report(insight, Letters(), tiny, {"seed": 0}), allow_nan=False))
    assert [each["recurrences"] for each in record["by_depth"]] == [1, 2, 3, 4, 5]
    last = record["by_depth"][-1]
    assert last["agreement"] == 1 and last["divergence"] < 1e-6
    assert last["change"] == pytest.approx(insight.changes[-1].median().item())
    assert sum(record["verdicts"].values()) == len(record["by_token"]) == 3 + 6 + 2 * 3
    assert set(record["verdicts"]) == set(VERDICTS)
    token = record["by_token"][2]
    assert (token["row"], token["position"], token["before"], token["is_new"]) == (0, 2, "ABC", False)
    # What greedy decoding wrote next is the readout there.
    assert token["predicted"] == Letters().decode([record["by_token"][3]["token_id"]])
    assert [each["is_new"] for each in record["by_token"]] == [False] * 3 + [True] * 3 + [False] * 6 + [True] * 3
    order = most_needed(insight, 4)
    assert insight.needed[order[0]] == insight.needed.max()
    assert insight.needed[order].tolist() == sorted(insight.needed[order].tolist(), reverse=True)


def test_prompts_in_any_batches_are_the_same(tiny):
    call = {"max_new_tokens": 2, "num_steps": 3, "progress": False, "seed": 5}
    tiny.generation_config.eos_token_id = None
    texts = ["ABC", "LOOPED", "Z"]
    one, three = (inspect_prompts(tiny, Letters(), texts, batch_size=size, **call) for size in (1, 3))
    assert torch.equal(one.rows, three.rows) and torch.equal(one.input_ids, three.input_ids)
    assert torch.equal(one.readouts, three.readouts)
    torch.testing.assert_close(one.changes, three.changes, rtol=1e-3, atol=1e-5)
    ids = tiny.generate(torch.tensor(Letters()(["Z"]).input_ids), sampler="autoregressive", num_steps=3, seed=7,
                        max_new_tokens=2)  # fmt: skip
    assert three.row(2).input_ids.tolist() == ids[0].tolist()
    assert isinstance(one.row(1), RecurrenceInsight)
    with pytest.raises(IndexError, match="row=3"):
        one.row(3)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps=0 must be at least 1"),
        ({"num_steps": 2.0}, TypeError, "num_steps=2.0 must be an int"),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids is list"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, ValueError, "at least one"),
        ({"input_ids": torch.ones(1, 129, dtype=torch.long)}, ValueError, "129 columns, more than the model's context"),
        ({"attention_mask": torch.tensor([[1]])}, ValueError, "attention_mask has shape"),
        ({"attention_mask": torch.zeros(1, 3, dtype=torch.long)}, ValueError, r"rows of \[0\] tokens"),
        ({"exit_criterion": "latent_diference"}, ValueError, "did you mean 'latent_difference'"),
        ({"exit_threshold": -1}, ValueError, "exit_threshold|threshold=-1"),
        ({"token_type_ids": torch.ones(1, 3, dtype=torch.long)}, ValueError, "no token types"),
        ({"seed": [1, 2]}, ValueError, "2 entries for 1 rows"),
        ({"prompt_lengths": [1, 2]}, ValueError, "prompt_lengths has 2 entries"),
    ],
)
def test_bad_input(tiny, change, error, message):
    call = {"input_ids": torch.tensor([ROWS[0]])} | change
    tiny.embed = lambda *args: pytest.fail("computed before the check")
    with pytest.raises(error, match=message):
        inspect_recurrences(tiny, **call)


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ([], {}, "one or more"),
        ("ABC", {}, "pass a list"),
        (["ABC", ""], {}, "Prompt 2 of 2 is empty"),
        (["A" * 127], {"max_new_tokens": 3}, "has room for 125"),
        (["ABC"], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        (["ABC"], {"max_new_tokens": 1, "num_steps": 0}, "num_steps=0"),
        (["ABC"], {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_prompts(tiny, prompts, change, message):
    tiny.embed = lambda *args: pytest.fail("computed before the check")
    with pytest.raises(ValueError, match=message):
        inspect_prompts(tiny, Letters(), prompts, progress=False, **change)
