"""The checks of transformers' own GenerationTesterMixin (which its wheel does not bring), for every sampler."""

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from hf_diffusion_forcing.cache import RecurrentDepthCache
from hf_diffusion_forcing.generation.output import DiffusionForcingOutput
from support import SAMPLERS, left_pad

ROWS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param] | {"seed": 1}


@pytest.mark.parametrize("do_sample", [False, True])
def test_dict_outputs(tiny, sampler, do_sample):
    common = {"max_new_tokens": 6, "do_sample": do_sample, **sampler}
    torch.manual_seed(0)
    ids = tiny.generate(**left_pad(ROWS), **common)
    torch.manual_seed(0)
    output = tiny.generate(**left_pad(ROWS), **common, return_dict_in_generate=True)
    forcing = sampler.get("sampler") in ("adaptive", "diffusion_forcing", "speculative_wavefront")
    assert isinstance(output, DiffusionForcingOutput if forcing else GenerateDecoderOnlyOutput)
    assert output.sequences.tolist() == ids.tolist() == output["sequences"].tolist()
    assert isinstance(output.cache, RecurrentDepthCache)
    assert output.cache.get_seq_length() == ids.shape[1] - 1


def test_without_a_cache_the_text_is_the_same(tiny):
    common = {"max_new_tokens": 8, "seed": 1}
    inputs = left_pad(ROWS)
    assert tiny.generate(**inputs, **common).tolist() == tiny.generate(**inputs, use_cache=False, **common).tolist()


def test_inputs_are_left_as_they_were(tiny, sampler):
    inputs = left_pad(ROWS)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    config = GenerationConfig(max_new_tokens=5, pad_token_id=0)
    stored = config.to_dict()
    tiny.generate(**inputs, generation_config=config, **sampler)
    assert config.to_dict() == stored
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


def test_positional_inputs_and_the_argument_named_inputs(tiny, sampler):
    ids = torch.tensor([ROWS[0]])
    results = [
        tiny.generate(ids, max_new_tokens=5, **sampler),
        tiny.generate(inputs=ids, max_new_tokens=5, **sampler),
        tiny.generate(input_ids=ids, max_new_tokens=5, **sampler),
    ]
    assert results[0].tolist() == results[1].tolist() == results[2].tolist()


def test_returned_sequences_are_grouped_by_prompt(tiny, sampler):
    inputs = left_pad(ROWS)
    torch.manual_seed(0)
    ids = tiny.generate(**inputs, do_sample=True, num_return_sequences=3, max_new_tokens=5, **sampler)
    width = inputs["input_ids"].shape[1]
    assert ids[:, :width].tolist() == [row for row in inputs["input_ids"].tolist() for _ in range(3)]


@pytest.mark.parametrize("length", [{"max_length": 12}, {"max_new_tokens": 7}, {"max_length": 99, "max_new_tokens": 7}])
def test_lengths(tiny, sampler, length):
    assert tiny.generate(torch.tensor([ROWS[0]]), **length, **sampler).shape == (1, 12)


def test_max_time(tiny, sampler):
    ids = tiny.generate(torch.tensor([ROWS[0]]), max_time=0.0, max_new_tokens=50, **sampler)
    assert ids.shape == (1, 6)


def test_a_custom_criterion_sees_committed_tokens_one_at_a_time(tiny, sampler):
    seen = []

    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.shape)
            return torch.full((len(input_ids),), input_ids.shape[1] == 8)

    ids = tiny.generate(
        torch.tensor([ROWS[0]]), stopping_criteria=StoppingCriteriaList([Third()]), max_new_tokens=20, **sampler
    )
    assert ids.shape == (1, 8)
    assert seen == [(1, 6), (1, 7), (1, 8)]


def test_training_mode_and_gradients_are_left_alone(tiny, sampler):
    tiny.train()
    tiny.generate(torch.tensor([ROWS[0]]), max_new_tokens=3, **sampler)
    assert tiny.training and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_a_generation_config_of_the_call_wins_over_the_models(tiny, sampler):
    tiny.generation_config.max_new_tokens = 3
    ids = tiny.generate(torch.tensor([ROWS[0]]), generation_config=GenerationConfig(max_new_tokens=9), **sampler)
    assert ids.shape == (1, 14)


def test_a_criterion_that_counts_rows_sees_the_whole_batch(tiny, sampler):
    """As transformers calls it: every length once, in order, ended rows padded; whichever row runs ahead."""
    seen = []

    class ByRow(StoppingCriteria):
        ends = [11, 18, 9]

        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.clone())
            return torch.tensor([input_ids.shape[1] == end for end in self.ends])

    batch, room = left_pad([ROWS[0], ROWS[1], ROWS[0][2:]]), {"max_new_tokens": 16, "pad_token_id": 0, **sampler}
    whole = tiny.generate(**batch, **room, eos_token_id=None)
    unused = next(token for token in range(1, 61) if token not in whole)  # without an EOS transformers does not pad
    criteria = StoppingCriteriaList([ByRow()])
    ids = tiny.generate(**batch, **room, eos_token_id=unused, stopping_criteria=criteria)
    length = batch["input_ids"].shape[1]
    assert [each.shape for each in seen] == [(3, column) for column in range(length + 1, 19)]
    for row, end in enumerate(ByRow.ends):
        expected = whole[row, :18].clone()
        expected[end:] = 0
        assert ids[row].tolist() == expected.tolist()
        for each in seen:
            assert each[row].tolist() == expected[: each.shape[1]].tolist()


def test_a_criterion_of_the_whole_batch_cuts_scores_and_traces_too(tiny, sampler):
    class AtLength8(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            assert len(scores) == input_ids.shape[1] - 5
            return torch.full((len(input_ids),), input_ids.shape[1] == 8)

    parallel = sampler.get("sampler") in ("adaptive", "diffusion_forcing", "speculative_wavefront")
    output = tiny.generate(
        **left_pad([ROWS[0], ROWS[0][::-1]]),
        **sampler,
        **({"return_trace": True} if parallel else {}),
        max_new_tokens=20,
        pad_token_id=0,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([AtLength8()]),
    )
    assert output.sequences.shape == (2, 8) and len(output.scores) == 3
    if parallel:
        assert output.stats.tokens_committed == [3, 3]
        assert [output.trace.new_tokens(row) for row in (0, 1)] == output.sequences[:, 5:].tolist()


def test_without_a_mask_only_leading_pads_are_padding(tiny, sampler):
    """transformers infers a mask that hides every pad id; inside a text they are tokens, as the last id always is."""
    tiny.generation_config.pad_token_id = 0
    ids = torch.tensor([[0, 0, 5, 0, 7, 0], [3, 1, 4, 0, 0, 9], [0, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 1]])
    common = sampler | {"max_new_tokens": 6}
    expected = tiny.generate(ids, attention_mask=mask, **common)
    assert tiny.generate(ids, **common).tolist() == expected.tolist()
    # A prompt whose last id is the pad token is not padded either.
    alone = tiny.generate(torch.tensor([[0]]), **common)
    assert alone.tolist() == tiny.generate(torch.tensor([[0]]), attention_mask=torch.ones(1, 1), **common).tolist()
