"""Keys and values of a prompt that begins like another are taken over or copied, and no text changes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig

from hf_diffusion_forcing.generation.call import Call
from hf_diffusion_forcing.generation.row import Row
from hf_diffusion_forcing.serving.prefixes import PrefixRule, common_prefix
from support import FAMILIES
from support.batching import alone
from support.matrix import crossed

SYSTEM = [7, 3, 50, 21, 9, 9, 14, 2, 33, 8, 1, 40]
USERS = [[5, 6, 7], [11, 12], [13, 14, 15, 16]]
WAYS = {
    # How to decode; how much of SYSTEM other rows can take; whether they can take an answer too.
    "autoregressive": ({"sampler": "autoregressive"}, 12, True),
    "lossless": ({"sampler": "speculative_wavefront", "draft_depth": 1}, 12, True),
    "waves, unshared": ({"sampler": "diffusion_forcing", "wavefront": 4, "kv_sharing": "none"}, 12, False),
    "adaptive, unshared": ({"sampler": "adaptive", "kv_sharing": "none"}, 12, False),
    "waves": ({"sampler": "diffusion_forcing", "wavefront": 4}, 0, False),
    "waves in chunks": ({"sampler": "diffusion_forcing", "wavefront": 4, "prefill_chunk_size": 5}, 10, False),
    "adaptive in chunks": ({"sampler": "adaptive", "prefill_chunk_size": 4}, 12, False),
    "fast in chunks": ({"sampler_preset": "fast", "num_steps": 6, "prefill_chunk_size": 4}, 12, False),
    "autoregressive in chunks": (
        {"sampler": "autoregressive", "kv_sharing": "last", "prefill_chunk_size": 4},
        12,
        False,
    ),
    "adaptive prefill": (
        {"sampler": "diffusion_forcing", "wavefront": 4, "kv_sharing": "none", "adaptive_prefill": True},
        0,
        False,
    ),
    "auto": ({"sampler": "diffusion_forcing", "wavefront": "auto", "kv_sharing": "none"}, 0, False),
}


def ask(manager, prompt, **keywords):
    """The answer to a prompt, and how many of its positions were not read."""
    before = manager.stats.reused_positions
    result = manager.get_result(manager.add_request(prompt, **keywords))
    assert result.error is None, result.error
    return result.generated_tokens, manager.stats.reused_positions - before


@pytest.mark.parametrize(
    ("name", "is_sampling"),
    crossed(
        WAYS,
        [True, False],
        keep=[
            (name, True)
            for name in (
                "autoregressive",
                "lossless",
                "waves, unshared",
                "waves",
                "waves in chunks",
                "fast in chunks",
                "adaptive prefill",
            )
        ],
    ),
)
def test_a_conversation(tiny, name, is_sampling):
    """A second question takes what both prompts begin with; a second turn the first one, and its answer if it was read
    at full depth. The texts are those of `generate()`, and those without reuse."""
    settings, shared, takes_answer = WAYS[name]
    settings = settings | {"max_new_tokens": 6, "seed": 1, "do_sample": is_sampling}
    first = SYSTEM + USERS[0]
    with tiny.continuous_batching_context_manager() as manager:
        answer, reused = ask(manager, first, **settings)
        assert answer == alone(tiny, first, **settings) and reused == 0
        turn = first + answer + [9, 8]
        text, reused = ask(manager, turn, **settings)
        assert text == alone(tiny, turn, **settings)
        most = len(turn) - 3 if takes_answer else len(first) if shared else 0
        chunk = settings.get("prefill_chunk_size", 1)
        assert reused == most - most % chunk
        other = SYSTEM + USERS[1]
        text, reused = ask(manager, other, **settings)
        assert text == alone(tiny, other, **settings) and reused == shared
        assert manager.stats.prompt_positions == len(first) + len(turn) + len(other)
        assert manager.stats.prefix_hit_rate == manager.stats.reused_positions / manager.stats.prompt_positions
    for keywords in (
        {"prefix_reuse": False},
        {"continuous_batching_config": ContinuousBatchingConfig(allow_block_sharing=False)},
    ):
        with tiny.continuous_batching_context_manager(**keywords) as manager:
            assert ask(manager, first, **settings) == (answer, 0)
            assert ask(manager, turn, **settings) == (alone(tiny, turn, **settings), 0)


def test_a_shared_beginning_is_read_once(tiny):
    """Requests that come together: one reads the system prompt, the others copy it from its seat while it decodes."""
    settings = {"sampler": "autoregressive", "max_new_tokens": 8}
    prompts = [SYSTEM + user for user in USERS]
    with tiny.continuous_batching_context_manager(max_batch_tokens=8) as manager:
        with manager.pause():
            names = [manager.add_request(prompt, seed=1, **settings) for prompt in prompts]
        texts = [manager.get_result(name).generated_tokens for name in names]
        assert manager.stats.reused_positions == 2 * len(SYSTEM)
    assert texts == [alone(tiny, prompt, seed=1, **settings) for prompt in prompts]


def test_seeds(tiny):
    """Where states start from noise, an entry depends on the seed: only rows of one seed share, unless there is no
    noise in the start."""
    settings = {"sampler": "speculative_wavefront", "draft_depth": 1, "max_new_tokens": 4}
    for scale, expected in ((1.0, 0), (0.0, len(SYSTEM))):
        own = settings | {"state_scale": scale}
        with tiny.continuous_batching_context_manager() as manager:
            ask(manager, SYSTEM + USERS[0], seed=1, **own)
            text, reused = ask(manager, SYSTEM + USERS[1], seed=2, **own)
            assert reused == expected and text == alone(tiny, SYSTEM + USERS[1], seed=2, **own)
            # The same settings and seed again: all but the position that predicts the first token.
            assert ask(manager, SYSTEM + USERS[0], seed=1, **own)[1] >= len(SYSTEM)


@pytest.mark.parametrize("name", ["ouro", "nanbeige", "hrm_text"])
def test_families_that_start_from_the_embedding_share_with_any_seed(name):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    settings = {"sampler": "speculative_wavefront", "draft_depth": 1, "second_draft_depth": 0, "num_steps": 2}
    settings |= {"max_new_tokens": 4, "do_sample": True}
    with model.continuous_batching_context_manager() as manager:
        for seed, user in enumerate(USERS):
            text, reused = ask(manager, SYSTEM + user, seed=seed, **settings)
            assert text == alone(model, SYSTEM + user, seed=seed, **settings)
            assert reused == (len(SYSTEM) if seed else 0)


def test_bidirectional_prompts_share_nothing():
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["hrm_text"]).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    settings = {"sampler": "autoregressive", "num_steps": 2, "max_new_tokens": 3, "seed": 0}
    both = SYSTEM + USERS[0]
    types = {"token_type_ids": torch.ones(1, len(both), dtype=torch.long)}
    with model.continuous_batching_context_manager() as manager:
        for keywords in (types, {}, types):
            text, reused = ask(manager, both, **settings, **keywords)
            assert reused == 0 and text == alone(model, both, **settings, **keywords)
        assert ask(manager, both, **settings)[1] == len(both) - 1


def test_the_seat_that_was_of_use_longest_ago_goes_first(tiny):
    """With two seats the third prompt takes that of the first, unless the first was of use since."""
    settings = {"sampler": "autoregressive", "max_new_tokens": 3, "seed": 1}
    one, two, three = ([start, *SYSTEM] for start in (1, 2, 3))
    for again, left, gone in ((one, one, two), (None, two, one)):
        with tiny.continuous_batching_context_manager(max_batch_size=2) as manager:
            for prompt in filter(None, (one, two, again, three)):
                ask(manager, prompt, **settings)
            with manager.pause():
                (group,) = manager._engine.groups
                kept = [row.ids[0] for row in group.kept]
            assert sorted(kept) == sorted([left[0], three[0]]) and gone[0] not in kept


def test_kept_seats_make_room_for_requests(tiny):
    """A request never waits for memory that only prefixes take."""
    settings = {"sampler": "autoregressive", "max_new_tokens": 3, "seed": 1}
    manager = tiny.init_continuous_batching()
    manager.add_request(SYSTEM, **settings)
    needed = manager._engine._load(None, manager._engine.scheduler.waiting[0]).cache_bytes
    manager.destroy()
    with tiny.continuous_batching_context_manager(max_cache_bytes=2 * needed) as manager:
        for start in range(5):
            ask(manager, [start, *SYSTEM[1:]], **settings)
        ask(manager, SYSTEM, **settings | {"num_steps": 5})
        with manager.pause():
            assert manager._engine.cache_bytes <= 2 * needed
            assert 1 <= sum(len(group.kept) for group in manager._engine.groups) <= 2


def test_what_a_seat_was_left_with_does_not_show(tiny):
    """A row that overflowed leaves values that are no numbers; the next row on its seat must not see them."""
    with torch.no_grad():
        tiny.transformer.wte.weight[60] = float("nan")
    settings = {"sampler": "autoregressive", "max_new_tokens": 4, "seed": 1}
    text = alone(tiny, [4, 5], **settings)
    longer = alone(tiny, SYSTEM * 3, **settings)
    with tiny.continuous_batching_context_manager(max_batch_size=2) as manager:
        for _ in range(2):
            ask(manager, [60] * 20, **settings)
        with manager.pause():
            names = [manager.add_request(prompt, **settings) for prompt in ([4, 5], SYSTEM * 3)]
        assert [manager.get_result(name).generated_tokens for name in names] == [text, longer]


def row(ids, seed=0, prompt_length=None, shift=0):
    made = Row(Call(None, None), 0, list(ids), shift, seed, 100)
    made.prompt_length = len(ids) if prompt_length is None else prompt_length
    return made


def test_the_rule():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2 and common_prefix([], [1]) == 0
    rule = PrefixRule(needs_seed=True, chunk=1, includes_text=False)
    other = row([1, 2, 3, 4, 5, 6], prompt_length=4)
    assert rule.length(row([1, 2, 3, 4, 5, 9]), other) == 4
    assert rule.length(row([1, 2, 3, 4, 5, 9], seed=1), other) == 0
    assert rule.length(row([1, 2]), other) == 1  # the last id is read
    assert rule.length(row([1, 2, 3], shift=-1), other) == 0
    text = PrefixRule(needs_seed=False, chunk=1, includes_text=True)
    assert text.length(row([1, 2, 3, 4, 5, 6, 7], seed=1), other) == 5  # the last committed id has no entries
    assert PrefixRule(True, 3, False).length(row([1, 2, 3, 4, 5, 9]), other) == 3
    assert PrefixRule(True, 0, True).length(row([1, 2, 3, 4]), other) == 0
    best, length = rule.best(row([1, 2, 3, 9]), [row([1, 9]), other, row([1, 2, 3])])
    assert best is other and length == 3
    assert rule.best(row([8, 8]), [other]) == (None, 0)
