"""Logits processors that keep a state: one call per committed token, in order, with its real prefix."""

from itertools import pairwise

import pytest
import torch
import xgrammar
from transformers import LogitsProcessor, StoppingCriteria, SynthIDTextWatermarkingConfig
from xgrammar.contrib.hf import LogitsProcessor as GrammarProcessor

from support import left_pad
from support.streamers import Recorder

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
BATCH = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
LAW_2 = {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 6}
LOSSLESS = {"sampler": "speculative_wavefront", "draft_depth": 2}
FORCING = {"sampler": "diffusion_forcing", "wavefront": 8, "inner_recurrence": 2, "exit_threshold": 0.3}
SAMPLERS = {
    "law 2": (LAW_2, {"sampler": "autoregressive", "kv_sharing": "last"}),
    "adaptive": (
        {"sampler": "adaptive", "exit_criterion": {"name": "fixed", "steps": 6}},
        {"sampler": "autoregressive", "kv_sharing": "last"},
    ),
    "lossless": (LOSSLESS, {"sampler": "autoregressive"}),
}
EXACT = pytest.mark.parametrize(("settings", "reference"), SAMPLERS.values(), ids=SAMPLERS)


class Counter(LogitsProcessor):
    """Forces a token that depends on how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, 10 + self.calls % 7 * 5] += 1000 if self.calls % 3 else 0
        self.calls += 1
        return scores


class Strict(LogitsProcessor):
    """Dies unless the prefix is the last one and one more id; bans the last token."""

    def __init__(self):
        self.prefix = None

    def __call__(self, input_ids, scores):
        if self.prefix is not None and not torch.equal(input_ids[:, :-1], self.prefix):
            raise AssertionError
        self.prefix = input_ids.clone()
        return scores.scatter(-1, input_ids[:, -1:], float("-inf"))


def text(model, processor, prompt=PROMPT, **settings):
    inputs = {"input_ids": prompt} if torch.is_tensor(prompt) else prompt
    common = {"max_new_tokens": 14, "seed": 4}
    return model.generate(**inputs, **common | settings, logits_processor=[processor]).tolist()


@pytest.mark.parametrize("processor", [Counter, Strict])
@EXACT
def test_a_processor_with_a_state_sees_what_autoregression_shows_it(tiny, settings, reference, processor):
    used = processor()
    for draw in ({}, {"do_sample": True, "top_k": 9, "repetition_penalty": 1.2}):
        expected = text(tiny, processor(), **reference, **draw)
        assert text(tiny, used, **settings, **draw) == expected
        used = processor()
    assert expected != tiny.generate(PROMPT, **reference, max_new_tokens=14, seed=4).tolist()


@pytest.mark.parametrize("processor", [Counter, Strict])
@pytest.mark.parametrize("settings", [FORCING, LOSSLESS])
def test_a_row_of_a_batch_has_a_processor_of_its_own(tiny, settings, processor):
    """Rows are of different lengths, and one ends early: no processor sees another row's prefix, or padding."""
    settings = settings | {"eos_token_id": 35, "pad_token_id": 0}
    original = processor()
    together = text(tiny, original, left_pad(BATCH), **settings)
    assert vars(original) == vars(processor())
    for row, ids in enumerate(BATCH):
        (alone,) = text(tiny, processor(), torch.tensor([ids]), **settings, seed=4 + row)
        new = together[row][5:]
        assert alone[len(ids) :] == new[: len(alone) - len(ids)] and not any(new[len(alone) - len(ids) :])


def test_calls_in_order_and_the_wave_follows_what_was_chosen(tiny):
    """The wave's drafts are unconstrained; what is committed, streamed, scored and traced is constrained."""
    seen = []

    class Watch(Counter):
        def __call__(self, input_ids, scores):
            seen.append(input_ids[0].tolist())
            return super().__call__(input_ids, scores)

    streamer = Recorder()
    output = tiny.generate(
        PROMPT,
        logits_processor=[Watch()],
        **FORCING,
        max_new_tokens=14,
        seed=4,
        streamer=streamer,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        return_trace=True,
    )
    ids = output.sequences[0].tolist()
    assert seen == [ids[:length] for length in range(5, 19)]
    assert ids[5:] == [int(scores.argmax()) for scores in output.scores] == output.trace.new_tokens()
    assert ids[5:] != [int(logits.argmax()) for logits in output.logits]
    assert streamer.committed == ids
    assert ids[6] == 15 and ids[7] == 20 and ids[9] == 30


def test_a_wide_wave_keeps_its_speed_where_the_processor_agrees(tiny):
    """Drafts that the processor leaves alone are committed as without it."""

    class Idle(Counter):
        def __call__(self, input_ids, scores):
            return scores

    common = FORCING | {"max_new_tokens": 14, "seed": 4, "return_dict_in_generate": True}
    plain = tiny.generate(PROMPT, **common)
    idle = tiny.generate(PROMPT, **common, logits_processor=[Idle()])
    assert idle.sequences.tolist() == plain.sequences.tolist()
    assert idle.stats.ticks == plain.stats.ticks


class Declared(LogitsProcessor):
    """Any token, then two that count on from it, and so on; another prefix is an error."""

    reads_only_prefix = True

    def __init__(self):
        self.refused = 0

    def __call__(self, input_ids, scores):
        new = input_ids[:, 5:]
        if not all(map(obeys, new.tolist())):
            self.refused += 1
            raise LookupError("no text of this grammar")
        if new.shape[1] % 3 == 0:
            return scores
        allowed = torch.full_like(scores, float("-inf"))
        return scores + allowed.scatter(-1, (new[:, -1:] + 1) % 61, 0)


def obeys(new):
    return all(after == (before + 1) % 61 for place, (before, after) in enumerate(pairwise(new), 1) if place % 3)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_declared_processor_sees_drafts_and_may_raise_on_them(tiny, rows):
    processor = Declared()
    batch = left_pad(BATCH[:rows])
    for ids in text(tiny, processor, batch, **FORCING, max_new_tokens=24):
        assert obeys(ids[5:])
    assert processor.refused
    assert text(tiny, Declared(), batch, **LOSSLESS) == text(tiny, Declared(), batch, sampler="autoregressive")

    class Broken(Declared):
        def __call__(self, input_ids, scores):
            raise LookupError("no text at all")

    with pytest.raises(LookupError):
        text(tiny, Broken(), batch, **FORCING)


def test_a_prefix_function_never_sees_padding(tiny):
    seen = []

    def allowed(row, ids):
        seen.append((row, ids.tolist()))
        return range(10, 40)

    output = tiny.generate(
        **left_pad(BATCH),
        **FORCING,
        max_new_tokens=20,
        eos_token_id=[12, 20, 21, 22],
        pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
        seed=4,
    )
    assert 0 in output[:, 5:]
    assert all(0 not in ids[5:] for _, ids in seen) and {row for row, _ in seen} == {0, 1, 2}


def test_what_cannot_be_copied_is_refused_in_a_batch(tiny):
    counter = Counter()
    for processor in (lambda ids, scores: counter(ids, scores), grammar(xgrammar.TokenizerInfo([b"a"]), "a")):
        with pytest.raises(ValueError, match=r"logits_processor .* may keep a state"):
            text(tiny, processor, left_pad(BATCH), **FORCING)
    assert counter.calls == 0


def grammar(info, regex):
    return GrammarProcessor(xgrammar.GrammarCompiler(info).compile_regex(regex))


class CopiedGrammar(GrammarProcessor):
    """As docs/hooks.md shows it."""

    def __deepcopy__(self, memo):
        return type(self)(self.compiled_grammars)


def test_a_grammar_of_xgrammar(bundled):
    model, tokenizer = bundled
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.padded_vocab_size)
    texts = ["Q: Start at 3 + 2. Last digit?\nA:", "Q: 7"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    regex = "([0-9][a-z]){3,8}"
    common = {"num_steps": 8, "max_new_tokens": 24}
    alone = []
    for prompt in texts:
        one = tokenizer(prompt, return_tensors="pt")
        depths = common | {"inner_recurrence": 8, "wavefront": 1, "sampler": "diffusion_forcing"}
        exact = text(model, grammar(info, regex), dict(one), **depths)
        assert exact == text(
            model, grammar(info, regex), dict(one), **common, sampler="autoregressive", kv_sharing="last"
        )
        lossless = text(model, grammar(info, regex), dict(one), **common, sampler="speculative_wavefront")
        assert lossless == text(model, grammar(info, regex), dict(one), **common, sampler="autoregressive")
        forced = text(model, grammar(info, regex), dict(one), **common, sampler="diffusion_forcing", wavefront=8)
        for ids in (exact, lossless, forced):
            said = tokenizer.decode(ids[0][one["input_ids"].shape[1] :], skip_special_tokens=True)
            assert len(said) >= 6 and all(a.isdigit() != b.isdigit() for a, b in pairwise(said))
        alone.append(said)
    compiled = xgrammar.GrammarCompiler(info).compile_regex(regex)
    together = text(model, CopiedGrammar(compiled), dict(inputs), **common, sampler="diffusion_forcing", wavefront=8)
    width = inputs["input_ids"].shape[1]
    assert [tokenizer.decode(ids[width:], skip_special_tokens=True) for ids in together] == alone


@EXACT
def test_synthid_watermarks(tiny, settings, reference):
    mark = {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3), "do_sample": True}
    common = left_pad(BATCH) | {"max_new_tokens": 12, "seed": 4}
    expected = tiny.generate(**common, **reference, **mark).tolist()
    assert tiny.generate(**common, **settings, **mark).tolist() == expected
    assert tiny.generate(**common, **reference, do_sample=True).tolist() != expected


@pytest.mark.parametrize("settings", [FORCING, LOSSLESS])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_criterion_with_a_state(tiny, settings, rows):
    """Criteria see committed tokens only, once per length, as in transformers' loop."""

    class Fifth(StoppingCriteria):
        def __init__(self):
            self.lengths = []

        def __call__(self, input_ids, scores, **kwargs):
            self.lengths.append(input_ids.shape[1])
            return torch.full((len(input_ids),), len(self.lengths) == 5)

    for sampler in (settings, {"sampler": "autoregressive"}):
        criterion = Fifth()
        ids = tiny.generate(
            **left_pad(BATCH[:rows]), **sampler, max_new_tokens=20, stopping_criteria=[criterion], pad_token_id=0
        )
        assert ids.shape[1] == 10 and criterion.lengths == [6, 7, 8, 9, 10]
