"""`pipeline("text-generation")` with the sampler's keywords says what `generate()` says; chats have a template."""

from itertools import islice

import jinja2
import pytest
import torch
from transformers import TextIteratorStreamer, pipeline

from hf_diffusion_forcing import RavenForCausalLM
from hf_diffusion_forcing.evaluation.problems import CHAT_TEMPLATE, problems
from support import tiny_config

FORCING = {"sampler": "diffusion_forcing", "wavefront": 16, "exit_threshold": 0.05, "seed": 0}
GREEDY = {"do_sample": False, "max_new_tokens": 12}  # a pipeline samples unless told otherwise
PROBLEMS = list(islice(problems(5, held_out=True), 3))
PROMPTS = [problem.prompt for problem in PROBLEMS]


@pytest.fixture
def pipe(bundled):
    return pipeline("text-generation", model=bundled[0], tokenizer=bundled[1])


def continuation(bundled, prompts: str | list[str], **settings) -> list[str]:
    """What `generate()` adds to the prompts, run as one batch."""
    model, tokenizer = bundled
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(**inputs, **settings)
    return tokenizer.batch_decode(ids.view(-1, ids.shape[-1])[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def question(problem) -> dict[str, str]:
    return {"role": "user", "content": problem.prompt.removeprefix("Q: ").removesuffix("\nA:")}


def test_the_model_is_known_to_the_pipeline(bundled, warnings):
    pipe = pipeline("text-generation", model=bundled[0], tokenizer=bundled[1])
    pipe(PROMPTS[0], **FORCING, **GREEDY)
    assert warnings.records == []


def test_a_string(pipe, bundled):
    (answer,) = continuation(bundled, PROMPTS[0], **FORCING, **GREEDY)
    assert pipe(PROMPTS[0], **FORCING, **GREEDY) == [{"generated_text": PROMPTS[0] + answer}]
    assert pipe(PROMPTS[0], return_full_text=False, **FORCING, **GREEDY) == [{"generated_text": answer}]


def test_the_keywords_reach_the_sampler(pipe):
    """A setting that cannot be is refused, from the call and from the pipeline's own settings."""
    with pytest.raises(ValueError, match="wavefront=0"):
        pipe(PROMPTS[0], sampler="diffusion_forcing", wavefront=0)
    with pytest.raises(ValueError, match="did you mean 'wavefront'"):
        pipe(PROMPTS[0], sampler="diffusion_forcing", wave_front=8)
    preset = pipeline("text-generation", model=pipe.model, tokenizer=pipe.tokenizer, **FORCING | {"headway": 0})
    with pytest.raises(ValueError, match="headway=0"):
        preset(PROMPTS[0])


def test_settings_of_the_pipeline(pipe, bundled):
    preset = pipeline("text-generation", model=pipe.model, tokenizer=pipe.tokenizer, **FORCING, **GREEDY)
    (answer,) = continuation(bundled, PROMPTS[1], **FORCING, **GREEDY)
    assert preset(PROMPTS[1], return_full_text=False) == [{"generated_text": answer}]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_list(pipe, bundled, batch_size):
    expected = []
    for start in range(0, len(PROMPTS), batch_size):
        expected += continuation(bundled, PROMPTS[start : start + batch_size], **FORCING, **GREEDY)
    outputs = pipe(PROMPTS, batch_size=batch_size, return_full_text=False, **FORCING, **GREEDY)
    assert [output["generated_text"] for (output,) in outputs] == expected


def test_token_ids(pipe, bundled):
    model, tokenizer = bundled
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    ids = model.generate(**inputs, **FORCING, **GREEDY)[0].tolist()
    assert pipe(PROMPTS[0], return_tensors=True, **FORCING, **GREEDY) == [{"generated_token_ids": ids}]


def test_sampling_is_the_default_of_a_pipeline(pipe, bundled):
    (answer,) = continuation(bundled, PROMPTS[0], do_sample=True, temperature=0.7, max_new_tokens=12, **FORCING)
    assert pipe(PROMPTS[0], max_new_tokens=12, return_full_text=False, **FORCING) == [{"generated_text": answer}]


def test_a_streamer(pipe, bundled):
    streamer = TextIteratorStreamer(bundled[1], skip_prompt=True, skip_special_tokens=True)
    (output,) = pipe(PROMPTS[0], streamer=streamer, return_full_text=False, **FORCING, **GREEDY)
    pieces = [piece for piece in streamer if piece]
    assert len(pieces) > 1
    assert "".join(pieces) == output["generated_text"]


def test_the_chat_template_makes_the_prompts_of_training(bundled):
    _, tokenizer = bundled
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for problem in PROBLEMS:
        chat = [question(problem)]
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == problem.prompt
        answered = [*chat, {"role": "assistant", "content": problem.answer}]
        end = tokenizer.eos_token
        assert tokenizer.apply_chat_template(answered, tokenize=False) == problem.prompt + problem.answer + end
        asked_again = tokenizer.apply_chat_template(answered + chat, tokenize=False, add_generation_prompt=True)
        assert asked_again == problem.prompt + problem.answer + end + problem.prompt
    with pytest.raises(jinja2.TemplateError, match="'system' is unknown"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}])


def test_chat_messages(pipe, bundled):
    chats = [[question(problem)] for problem in PROBLEMS[:2]]
    expected = continuation(bundled, PROMPTS[:2], **FORCING, **GREEDY)
    outputs = pipe(chats, batch_size=2, **FORCING, **GREEDY)
    for chat, (output,), answer in zip(chats, outputs, expected, strict=True):
        assert output["generated_text"] == [*chat, {"role": "assistant", "content": answer}]


def test_an_answer_that_has_begun(pipe, bundled):
    """A chat that ends in an assistant's message is continued in it."""
    begun = {"role": "assistant", "content": PROBLEMS[0].answer.split(".")[0].strip() + "."}
    (rest,) = continuation(bundled, PROMPTS[0] + " " + begun["content"], **FORCING, **GREEDY)
    (output,) = pipe([question(PROBLEMS[0]), begun], **FORCING, **GREEDY)
    assert output["generated_text"][-1] == {"role": "assistant", "content": begun["content"] + rest}


def test_a_sampler_stored_with_the_model_needs_no_keyword(bundled):
    """With random weights one recurrence and six never agree for long: the texts tell the samplers apart."""
    torch.manual_seed(0)
    _, tokenizer = bundled
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = RavenForCausalLM(tiny_config(vocab_size=len(tokenizer), block_size=512, **tokens)).eval()
    settings = {"wavefront": 8, "inner_recurrence": 1, "exit_threshold": 1e6, "seed": 0}
    forced = continuation((model, tokenizer), PROMPTS[0], sampler="diffusion_forcing", **settings, **GREEDY)
    baseline = continuation((model, tokenizer), PROMPTS[0], sampler="autoregressive", seed=0, **GREEDY)
    model.generation_config.sampler, model.generation_config.sampler_config = "diffusion_forcing", settings
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (output,) = pipe(PROMPTS[0], return_full_text=False, **GREEDY)
    assert [output["generated_text"]] == forced != baseline
