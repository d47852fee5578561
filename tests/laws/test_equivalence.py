"""Laws 2, 3 and 4: one position at a time is autoregression; neighbours and padding change nothing."""

from itertools import product

import pytest
import torch

from support import left_pad, new_tokens
from support.heads import with_start_head
from support.matrix import cases, crossed

FORCING = {"sampler": "diffusion_forcing", "wavefront": 12, "exit_threshold": 0.03, "inner_recurrence": 2}
STABILISED = FORCING | {"embedding_momentum": 0.1, "state_noise": 0.05}
SAMPLERS = {
    "autoregressive": {"sampler": "autoregressive"},
    "autoregressive shared": {"sampler": "autoregressive", "kv_sharing": "last"},
    "diffusion_forcing": FORCING,
    "diffusion_forcing stabilised": STABILISED,
    "diffusion_forcing headway 3": FORCING | {"headway": 3},
    "diffusion_forcing unshared": FORCING | {"kv_sharing": "none"},
    "diffusion_forcing 3 slots": FORCING | {"kv_sharing": 3},
    "diffusion_forcing with hooks": FORCING
    | {
        "continuous_compute": True,
        "exit_threshold": None,
        "exit_criterion": {"all": ["kl", {"name": "token_stability", "patience": 2}]},
        "latent_processors": ["anderson"],
    },
    "diffusion_forcing learned start": FORCING | {"learned_start": True, "headway": 3, "kv_sharing": 3},
    "adaptive learned start": {"sampler": "adaptive", "learned_start": True},
    "autoregressive 3 slots": {"sampler": "autoregressive", "kv_sharing": 3},
    "adaptive": {"sampler": "adaptive", "exit_threshold": 0.1},
    "adaptive prefill": FORCING | {"adaptive_prefill": True, "exit_threshold": 0.2},
    "adaptive prefill unshared": {
        "sampler": "adaptive",
        "kv_sharing": "none",
        "adaptive_prefill": True,
        "exit_criterion": "kl",
        "exit_threshold": 0.01,
    },
    "speculative_wavefront": {"sampler": "speculative_wavefront", "draft_depth": 1},
    "speculative_wavefront twice": {"sampler": "speculative_wavefront", "draft_depth": 2, "second_draft_depth": 4},
    "adaptive unshared": {"sampler": "adaptive", "kv_sharing": "none"},
    "adaptive kl": {"sampler": "adaptive", "exit_criterion": "kl", "kv_sharing": 3},
}
KEPT = [
    "autoregressive 3 slots",
    "adaptive prefill unshared",
    "diffusion_forcing stabilised",
    "diffusion_forcing with hooks",
    "diffusion_forcing learned start",
    "speculative_wavefront twice",
]
"""One of each sampler, and of each kind of setting."""


@pytest.mark.parametrize(("prompt", "length"), cases([(1, 12), *product(range(4), [64])], keep=[(1, 12)]))
def test_law_2_on_a_trained_model(huginn_mini, golden, prompt, length):
    ids = golden[f"input_ids_{prompt}"]
    text = huginn_mini.generate(
        ids,
        max_new_tokens=length,
        state_scale=0.0,
        sampler="diffusion_forcing",
        wavefront=1,
        inner_recurrence=32,
    )
    assert text.tolist() == golden[f"greedy_shared_{prompt}"][:, : ids.shape[1] + length].tolist()


@pytest.mark.parametrize(
    ("kv_sharing", "do_sample"),
    crossed(["last", "none", 4, 5], [False, True], keep=[("last", False), ("none", True), (4, True)]),
)
def test_law_2_with_random_weights_and_states(tiny, kv_sharing, do_sample):
    ids = torch.randint(0, 61, (3, 9), generator=torch.manual_seed(1))
    common = {"max_new_tokens": 16, "kv_sharing": kv_sharing, "seed": 5, "do_sample": do_sample}
    autoregressive = tiny.generate(ids, sampler="autoregressive", **common)
    forcing = tiny.generate(
        ids, sampler="diffusion_forcing", wavefront=1, inner_recurrence=tiny.config.mean_recurrence, **common
    )
    assert forcing.tolist() == autoregressive.tolist()


@pytest.mark.parametrize("name", cases(SAMPLERS, KEPT))
def test_law_3_rows_do_not_depend_on_their_batch(huginn_mini, prompts, name):
    common = {"max_new_tokens": 16, "num_steps": 8, **SAMPLERS[name]}
    inputs, model = left_pad(prompts), with_start_head(huginn_mini)
    together = model.generate(**inputs, seed=[3, 4, 5, 6], **common)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), seed=3 + row, **common)
        assert new_tokens(together, inputs["input_ids"].shape[1])[row] == new_tokens(alone, len(prompt))[0]


def test_law_3_for_rows_that_end_at_different_times(huginn_mini, prompts):
    """Rows that have ended leave the batch; the others must not notice."""
    common = FORCING | {"max_new_tokens": 48, "num_steps": 8, "eos_token_id": ord("."), "pad_token_id": 0}
    inputs = left_pad(prompts)
    together = new_tokens(huginn_mini.generate(**inputs, seed=[3, 4, 5, 6], **common), inputs["input_ids"].shape[1])
    lengths = set()
    for row, prompt in enumerate(prompts):
        alone = new_tokens(huginn_mini.generate(torch.tensor([prompt]), seed=3 + row, **common), len(prompt))[0]
        lengths.add(len(alone))
        assert together[row][: len(alone)] == alone
        assert set(together[row][len(alone) :]) <= {0}
    assert len(lengths) > 1


@pytest.mark.parametrize("name", cases(SAMPLERS, KEPT))
@pytest.mark.parametrize("padding", cases([1, 13], keep=[13]))
def test_law_4_left_padding_changes_nothing(huginn_mini, prompts, name, padding):
    common = {"max_new_tokens": 12, "num_steps": 8, "seed": 2, **SAMPLERS[name]}
    prompt, model = prompts[3], with_start_head(huginn_mini)
    plain = model.generate(torch.tensor([prompt]), **common)
    padded = {
        "input_ids": torch.tensor([[7] * padding + prompt]),
        "attention_mask": torch.tensor([[0] * padding + [1] * len(prompt)]),
    }
    assert new_tokens(model.generate(**padded, **common), padding + len(prompt)) == new_tokens(plain, len(prompt))


@torch.no_grad()
def test_padding_does_not_change_logits(huginn_mini, prompts):
    prompt = prompts[3]
    seeds = torch.tensor([9])
    plain = huginn_mini(torch.tensor([prompt]), num_steps=4, seeds=seeds, use_cache=False).logits
    for use_cache in (True, False):
        for left, right in ((5, 0), (0, 5)):
            ids = torch.tensor([[7] * left + prompt + [7] * right])
            mask = torch.tensor([[0] * left + [1] * len(prompt) + [0] * right])
            logits = huginn_mini(ids, attention_mask=mask, num_steps=4, seeds=seeds, use_cache=use_cache).logits
            kept = logits[:, left : left + len(prompt)]
            torch.testing.assert_close(kept, plain, atol=1e-4, rtol=0)


def test_decoding_with_a_cache_equals_decoding_without(tiny):
    """`kv_sharing="none"` is the model's native semantics: the same as recomputing the whole text every time."""
    ids = torch.randint(0, 61, (2, 7), generator=torch.manual_seed(3))
    common = {"max_new_tokens": 12, "seed": 1, "num_steps": 5}
    cached = tiny.generate(ids, sampler="autoregressive", kv_sharing="none", **common)
    recomputed = tiny.generate(ids, use_cache=False, **common)
    assert cached.tolist() == recomputed.tolist()


def test_a_conversation_continues_from_its_cache(huginn_mini, prompts):
    """The next turn prefills only what is new, and says what one long prompt makes it say."""
    exact = {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 8, "kv_sharing": "none"}
    common = exact | {"num_steps": 8, "seed": 0, "max_new_tokens": 12, "return_dict_in_generate": True}
    first = huginn_mini.generate(torch.tensor([prompts[0]]), **common)
    turn = torch.cat((first.sequences, torch.tensor([prompts[1]])), dim=1)
    assert first.cache.get_seq_length() == first.sequences.shape[1] - 1
    continued = huginn_mini.generate(turn, cache=first.cache, **common)
    afresh = huginn_mini.generate(turn, **common)
    assert continued.sequences.tolist() == afresh.sequences.tolist()
    # Or the new ids alone, with a mask over everything.
    seen = first.sequences.shape[1] - 1
    again = huginn_mini.generate(torch.tensor([prompts[0]]), **common)
    alone = huginn_mini.generate(turn[:, seen:], attention_mask=torch.ones_like(turn), cache=again.cache, **common)
    assert alone.sequences[0].tolist() == afresh.sequences[0, seen:].tolist()


def test_rows_that_ended_apart_continue_from_one_cache(huginn_mini, prompts):
    """The cache speaks of what all rows hold, so the rest of the longer row is simply run again."""
    exact = {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 8, "kv_sharing": "none"}
    stops = {"eos_token_id": ord("."), "pad_token_id": 0}
    common = exact | stops | {"num_steps": 8, "seed": [0, 0], "return_dict_in_generate": True}
    rows = [prompts[1], prompts[2]]
    first = huginn_mini.generate(**left_pad(rows), **common, max_new_tokens=48)
    texts = [row[row.nonzero()[0] : row.nonzero()[-1] + 1].tolist() for row in first.sequences]
    assert len({len(text) - len(row) for text, row in zip(texts, rows, strict=True)}) == 2
    # Both rows in full again, as a new left-padded batch.
    turn = left_pad([text + prompts[3] for text in texts])
    held = first.cache.get_seq_length()
    assert held == max(map(len, rows)) + min(len(t) - len(r) for t, r in zip(texts, rows, strict=True)) - 1
    afresh = huginn_mini.generate(**turn, **common, max_new_tokens=6)
    alone = [
        huginn_mini.generate(torch.tensor([text + prompts[3]]), **common | {"seed": 0}, max_new_tokens=6)
        for text in texts
    ]
    for row, one in enumerate(alone):
        assert afresh.sequences[row, -6:].tolist() == one.sequences[0, -6:].tolist()


def test_sampling_with_left_padding_uses_the_rows_own_positions(tiny):
    common = {"sampler": "autoregressive", "do_sample": True, "top_k": 0, "max_new_tokens": 12}
    rows = [[3, 1, 4, 1, 5], [9, 2]]
    together = new_tokens(tiny.generate(**left_pad(rows), seed=[7, 8], **common), 5)
    for row, prompt in enumerate(rows):
        alone = tiny.generate(torch.tensor([prompt]), seed=7 + row, **common)
        assert together[row] == new_tokens(alone, len(prompt))[0]


@pytest.mark.parametrize("sampler", ["autoregressive", "diffusion_forcing"])
def test_new_ids_alone_sample_as_the_whole_text_does(tiny, sampler):
    exact = {"wavefront": 1, "inner_recurrence": 6} if sampler == "diffusion_forcing" else {}
    common = {"sampler": sampler, "kv_sharing": "none", "do_sample": True, "top_k": 0, "seed": 3} | exact
    common |= {"max_new_tokens": 10, "return_dict_in_generate": True}
    first = tiny.generate(torch.tensor([[3, 1, 4]]), **common)
    turn = torch.cat((first.sequences, torch.tensor([[5, 9, 2]])), dim=1)
    whole = tiny.generate(turn, **common).sequences[0, turn.shape[1] :]
    held = first.cache.get_seq_length()
    new = turn[:, held:]
    cache = first.cache
    alone = tiny.generate(new, attention_mask=torch.ones_like(turn), cache=cache, **common).sequences
    assert alone[0, new.shape[1] :].tolist() == whole.tolist()


@pytest.mark.parametrize("sampler", [None, "autoregressive", "diffusion_forcing"])
def test_ids_that_are_neither_all_nor_the_new_ones_are_refused(tiny, sampler):
    """transformers' loop would take ids that are in the cache for new ones."""
    first = tiny.generate(
        torch.tensor([[3, 1, 4]]), sampler="autoregressive", max_new_tokens=5, return_dict_in_generate=True
    )
    turn, kept = torch.cat((first.sequences, torch.tensor([[5, 9]])), dim=1), first.cache
    settings = {"sampler": sampler, "cache": kept, "max_new_tokens": 2, "num_steps": 6, "kv_sharing": "none"}
    for ids in (turn[:, 4:], turn[:, -2:]):
        with pytest.raises(ValueError, match=r"holds 7 columns; the call covers 10 and has \d ids: pass the whole"):
            tiny.generate(ids, attention_mask=torch.ones_like(turn), **settings)


def test_deeper_refinement_than_the_prompt_had_sees_its_last_entries(tiny):
    """max_steps > num_steps without sharing: beyond the prompt's recurrences a position reads its last, not zeros."""
    positions, seeds = torch.arange(5)[None], torch.tensor([1])
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    cache = tiny.new_cache(9, "none", 8)
    with torch.no_grad():
        tiny(ids, cache=cache, num_steps=4, seeds=seeds)
    for layer in (1, 2):
        keys = cache.keys[layer][:, :, :, positions[0]]
        assert keys[3].abs().min() > 0
        for slot in range(4, 9):
            assert torch.equal(keys[slot], keys[3])
