"""Guesses in diffusion forcing: right ones save ticks, wrong ones change no text of a model that converges."""

from dataclasses import dataclass

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_diffusion_forcing import DiffusionForcingConfig, DraftSource
from hf_diffusion_forcing.evaluation.problems import problems
from support import left_pad
from support.heads import random_heads

FORCING = {"sampler": "diffusion_forcing", "inner_recurrence": 2, "exit_threshold": 0.01}


@dataclass
class Oracle(DraftSource):
    """Knows a text. Every `slip`-th token it says is wrong."""

    text: list[int]
    slip: int = 0

    def propose(self, ids, count):
        if self.text[: len(ids)] != ids:
            return []
        places = range(len(ids), min(len(ids) + count, len(self.text)))
        return [self.text[at] + 1 if self.slip and at % self.slip == 0 else self.text[at] for at in places]


@dataclass
class Constant(DraftSource):
    token: int

    def propose(self, ids, count):
        return [self.token] * count


def run(model, inputs, **kwargs):
    defaults = {"seed": 0, "max_new_tokens": 32, "return_dict_in_generate": True}
    return model.generate(**inputs, **FORCING | defaults | kwargs)


@pytest.fixture(scope="module")
def problem(bundled):
    """The model without heads, a prompt, and the output without guesses."""
    model, tokenizer = bundled
    inputs = tokenizer(next(problems(21, held_out=True, kind="worked")).prompt, return_tensors="pt")
    fitted, model.decoding_heads = model.decoding_heads, None
    yield model, inputs, run(model, inputs)
    model.decoding_heads = fitted


def test_right_guesses_save_ticks(problem):
    model, inputs, alone = problem
    output = run(model, inputs, draft_tokens=8, draft_source=Oracle(alone.sequences[0].tolist()))
    assert output.sequences.tolist() == alone.sequences.tolist()
    assert output.stats.ticks < alone.stats.ticks / 2
    made, right = output.stats.guesses["Oracle"]
    assert right > 16 and made - right <= 2
    assert not alone.stats.guesses


def test_guesses_go_on_behind_a_wrong_one(problem):
    """A wrong guess costs the ticks of one position: those behind the corrected draft are guessed anew."""
    model, inputs, alone = problem
    output = run(model, inputs, draft_tokens=8, draft_source=Oracle(alone.sequences[0].tolist(), slip=6))
    assert output.sequences.tolist() == alone.sequences.tolist()
    assert output.stats.ticks < alone.stats.ticks * 0.75
    made, right = output.stats.guesses["Oracle"]
    assert 0 < right < made


def test_wrong_guesses_change_no_text_and_cost_few_ticks(problem):
    model, inputs, alone = problem
    output = run(model, inputs, draft_tokens=6, draft_source=Constant(7), suppress_tokens=[7])
    assert output.sequences.tolist() == run(model, inputs, suppress_tokens=[7]).sequences.tolist()
    assert output.stats.ticks <= alone.stats.ticks + 2
    made, right = output.stats.guesses["Constant"]
    assert made > 0 == right


def test_a_trace_has_every_commit_and_the_width_stays_within_the_wavefront(problem):
    model, inputs, alone = problem
    source = Oracle(alone.sequences[0].tolist())
    output = run(model, inputs, draft_tokens=12, draft_source=source, wavefront=6, return_trace=True)
    assert output.trace.new_tokens() == output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert max(wave.width for wave in output.trace.waves) == 6
    assert max(len(wave.committed) for wave in output.trace.waves) > 1


def test_heads_guess_for_each_row_as_if_it_were_alone(huginn_mini, prompts):
    """Law 3 with random heads, whose guesses are wrong."""
    fitted, huginn_mini.decoding_heads = huginn_mini.decoding_heads, random_heads(huginn_mini)
    settings = {"draft_tokens": 4, "draft_source": None, "num_steps": 8, "max_new_tokens": 16}
    seeds = [3 + row for row in range(len(prompts))]
    try:
        together = run(huginn_mini, left_pad(prompts), **settings | {"seed": seeds})
        width = together.sequences.shape[1] - 16
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            alone = run(huginn_mini, left_pad([prompt]), **settings | {"seed": [seed]})
            assert alone.sequences[0, len(prompt) :].tolist() == together.sequences[row, width:].tolist()
        made, _ = together.stats.guesses["extra_tokens"]
        assert made > 0
    finally:
        huginn_mini.decoding_heads = fitted


@dataclass
class First(DraftSource):
    """Says the first token that it sees, again and again."""

    seen: set[int]

    def propose(self, ids, count):
        self.seen.add(ids[0])
        return ids[:1] * count


def test_sources_see_no_padding(huginn_mini, prompts):
    """Law 4: a guess may change the text."""
    source = First(set())
    run(huginn_mini, left_pad(prompts, pad=60), draft_tokens=3, draft_source=source, num_steps=8, max_new_tokens=8)
    assert source.seen == {prompt[0] for prompt in prompts}


class EveryOther(LogitsProcessor):
    """Keeps a state: bans the last token at every other call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls % 2:
            scores = scores.index_fill(1, input_ids[0, -1:], float("-inf"))
        return scores


def test_a_processor_that_keeps_a_state_is_called_once_a_token(problem):
    model, inputs, alone = problem
    processor = EveryOther()
    source = Oracle(alone.sequences[0].tolist())
    output = run(model, inputs, draft_tokens=5, draft_source=source, logits_processor=LogitsProcessorList([processor]))
    assert processor.calls == output.stats.tokens_committed[0]


def test_a_source_s_junk_is_refused(problem):
    model, inputs, _ = problem
    with pytest.raises(ValueError, match="the vocabulary has ids from 0"):
        run(model, inputs, draft_tokens=3, draft_source=Constant(10**6))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"draft_tokens": 0}, ValueError, "draft_tokens=0 must be at least 1"),
        ({"draft_tokens": 2.0}, TypeError, "draft_tokens=2.0"),
        ({"draft_tokens": "auto"}, ValueError, "draft_tokens='auto' is not possible"),
        ({"draft_tokens": 2, "wavefront": "auto"}, ValueError, "draft_tokens=2 is not possible with wavefront='auto'"),
        ({"draft_source": "prompt_lokup"}, ValueError, "did you mean 'prompt_lookup'"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        DiffusionForcingConfig(**settings)


def test_settings_are_saved(tmp_path):
    config = DiffusionForcingConfig(draft_tokens=4, draft_source={"name": "prompt_lookup", "min_ngram": 1})
    config.save_pretrained(tmp_path)
    assert DiffusionForcingConfig.from_pretrained(tmp_path) == config


def test_guesses_stay_within_the_length(problem):
    model, inputs, alone = problem
    source = Oracle(alone.sequences[0].tolist())
    output = run(model, inputs, draft_tokens=30, draft_source=source, max_new_tokens=5)
    length = inputs["input_ids"].shape[1] + 5
    assert torch.equal(output.sequences, alone.sequences[:, :length])
