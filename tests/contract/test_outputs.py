"""What generate() returns besides the ids: scores, logits and a cache that goes on, as autoregression returns them."""

import pytest
import torch

from support import left_pad
from support.matrix import crossed

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
EXACT = {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 6}
AUTOREGRESSIVE = {"sampler": "autoregressive", "kv_sharing": "last"}
COMMON = {
    "max_new_tokens": 10,
    "seed": 4,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3, "suppress_tokens": [3]},
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
    ],
)
def test_scores_and_logits_are_those_of_autoregression(tiny, settings):
    inputs = left_pad(ROWS)
    expected = tiny.generate(**inputs, **COMMON, **AUTOREGRESSIVE, **settings)
    output = tiny.generate(**inputs, **COMMON, **EXACT, **settings)
    assert output.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(output[name]) == len(expected[name]) == 10
        torch.testing.assert_close(torch.stack(output[name]), torch.stack(expected[name]), rtol=1e-4, atol=1e-4)
    # What transformers' users do with them.
    ours, theirs = (tiny.compute_transition_scores(o.sequences, o.scores) for o in (output, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_scores_of_a_wide_wave_chose_its_tokens(huginn_mini, prompts):
    inputs = left_pad(prompts)
    output = huginn_mini.generate(
        **inputs, **COMMON | {"max_new_tokens": 24}, sampler="diffusion_forcing", wavefront=8, num_steps=8
    )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    assert torch.stack(output.scores, dim=1).argmax(-1).tolist() == new.tolist()


def test_scores_past_a_rows_end_are_zeros(huginn_mini, prompts):
    end = ord(".")
    inputs = left_pad(prompts)
    output = huginn_mini.generate(
        **inputs,
        **COMMON | {"max_new_tokens": 48, "num_steps": 8, "eos_token_id": end, "pad_token_id": 0},
        sampler="diffusion_forcing",
    )
    logits = torch.stack(output.logits, dim=1)
    lengths = output.stats.tokens_committed
    assert len(set(lengths)) > 1 and logits.shape[1] == max(lengths)
    for row, length in zip(logits, lengths, strict=True):
        assert row[:length].any(-1).all() and not row[length:].any()


@pytest.mark.parametrize("sampler", [AUTOREGRESSIVE, EXACT, {"sampler": "diffusion_forcing", "num_steps": 8}])
def test_a_conversation_goes_on_from_its_cache(huginn_mini, prompts, sampler):
    """The next turn prefills the new tokens alone and says what one long prompt says."""
    depth = {"num_steps": 8, "inner_recurrence": 8} if sampler is EXACT else {"num_steps": 8}
    common = {"seed": 1, "max_new_tokens": 12, "state_scale": 0.0, "exit_threshold": 0.0, **sampler, **depth}
    if sampler is AUTOREGRESSIVE:
        common.pop("exit_threshold")
    first = huginn_mini.generate(torch.tensor([prompts[0]]), return_dict_in_generate=True, **common)
    text = torch.cat((first.sequences, torch.tensor([prompts[1]])), dim=1)
    seen = first.cache.get_seq_length()
    assert seen == first.sequences.shape[1] - 1
    lengths = []
    embed = huginn_mini.embed
    try:
        huginn_mini.embed = lambda ids, *rest: lengths.append(ids.shape[1]) or embed(ids, *rest)
        second = huginn_mini.generate(text, cache=first.cache, **common)
    finally:
        del huginn_mini.embed
    assert lengths[0] == text.shape[1] - seen
    assert second.tolist() == huginn_mini.generate(text, **common).tolist()


@pytest.mark.parametrize(
    ("sampler", "kv_sharing", "rows"),
    crossed(
        ["adaptive", "diffusion_forcing"],
        ["last", "none"],
        [[0, 1, 2, 3], [2] + 8 * [0]],
        keep=[("adaptive", "none", [0, 1, 2, 3]), ("diffusion_forcing", "last", [2] + 8 * [0])],
    ),
)
def test_rows_that_ended_early_stay_in_the_cache(huginn_mini, prompts, sampler, kv_sharing, rows):
    """Ended rows leave the batch while it decodes (the first of nine not at once); the cache has all."""
    prompts = [prompts[row] for row in rows]
    inputs = left_pad(prompts)
    common = {"num_steps": 8, "seed": 3, "sampler": sampler, "kv_sharing": kv_sharing, "pad_token_id": 0}
    output = huginn_mini.generate(
        **inputs, **common, max_new_tokens=48, eos_token_id=ord("."), return_dict_in_generate=True
    )
    cache = output.cache
    assert len(set(output.stats.tokens_committed)) > 1
    assert cache.batch_size == len(prompts)
    assert output.stats.tokens_committed.count(min(output.stats.tokens_committed)) == 1
    shortest = min(output.stats.tokens_committed)
    columns = inputs["input_ids"].shape[1] + shortest
    assert cache.get_seq_length() == columns - 1
    ids = output.sequences[:, :columns]
    mask = torch.cat((inputs["attention_mask"], torch.ones(len(ids), shortest, dtype=torch.long)), dim=1)
    again = huginn_mini.generate(ids, attention_mask=mask, cache=cache, max_new_tokens=8, **common)
    # A row goes on as it does with a cache of its own: the first, its neighbour, and the last two.
    for row in {0, 1, len(prompts) - 2, len(prompts) - 1}:
        prompt = prompts[row]
        alone = huginn_mini.generate(
            torch.tensor([prompt]),
            **common | {"seed": 3 + row},
            max_new_tokens=shortest,
            return_dict_in_generate=True,
        )
        expected = huginn_mini.generate(
            alone.sequences, cache=alone.cache, max_new_tokens=8, **common | {"seed": 3 + row}
        )
        assert again[row, columns:].tolist() == expected[0, len(prompt) + shortest :].tolist()


def test_a_cache_made_in_inference_mode_goes_on_outside_it(tiny):
    common = {"sampler": "diffusion_forcing", "seed": 1, "max_new_tokens": 6}
    with torch.inference_mode():
        first = tiny.generate(torch.tensor([ROWS[0]]), **common, return_dict_in_generate=True)
    plain = tiny.generate(torch.tensor([ROWS[0]]), **common, return_dict_in_generate=True)
    ids = plain.sequences
    inside, outside = (tiny.generate(ids, cache=cache, **common) for cache in (first.cache, plain.cache))
    assert inside.tolist() == outside.tolist()
