"""Which states the start head reads, and what it saves."""

import pytest
import torch

from hf_diffusion_forcing.evaluation.problems import problems
from support.heads import with_start_head

FORCING = {"sampler": "diffusion_forcing", "inner_recurrence": 2, "exit_threshold": 0.5}
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "adaptive", "exit_threshold": 0.2},
        FORCING | {"wavefront": 1},
        FORCING | {"wavefront": 4, "inner_recurrence": 1},
        FORCING | {"wavefront": 6, "headway": 3},
    ],
)
def test_it_reads_the_newest_state_on_the_left(tiny, settings, monkeypatch):
    """That of the prompt, of the last tick, or the start of a neighbour that begins in the same tick."""
    model, calls = with_start_head(tiny), []
    start = model.decoding_heads.start

    def watched(e, left):
        calls.append((left[0, 0], start(e, left)))
        return calls[-1][1]

    monkeypatch.setattr(model.decoding_heads, "start", watched)
    common = {"num_steps": 6, "max_new_tokens": 14, "eos_token_id": None, "seed": 0, "return_trace": "latents"}
    trace = model.generate(PROMPT, **settings, **common, learned_start=True, return_dict_in_generate=True).trace
    last = PROMPT.shape[1] - 1
    newest = {last: tiny(PROMPT, num_steps=6, seeds=torch.tensor([0])).latents[0, last]}
    entered = iter(calls)
    for wave in trace.waves:
        positions = range(wave.start, wave.start + wave.width)
        for position in positions:
            if position not in newest:
                left, predicted = next(entered)
                torch.testing.assert_close(left, newest[position - 1])
                newest[position] = predicted[0, 0]
        newest |= dict(zip(positions, wave.latents, strict=True))
    assert next(entered, None) is None and len(calls) >= 13


@pytest.mark.parametrize("settings", [{"sampler": "adaptive"}, {"sampler_preset": "fast"}])
def test_the_bundled_start_head_saves_recurrences(bundled, settings):
    model, tokenizer = bundled
    spent = {False: 0, True: 0}
    for problem, _ in zip(problems(0, held_out=True), range(4), strict=False):
        inputs = tokenizer(problem.prompt, return_tensors="pt")
        texts = []
        for learned in spent:
            output = model.generate(
                **inputs, **settings, learned_start=learned, seed=0, max_new_tokens=48, return_dict_in_generate=True
            )
            texts.append(output.sequences.tolist())
            spent[learned] += output.stats.positions_refined
        assert texts[0] == texts[1]
    assert spent[True] < 0.75 * spent[False]
