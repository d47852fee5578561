"""The real server in a process of its own, asked by the real OpenAI client, answers what `generate()` says."""

import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx2
import openai
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_diffusion_forcing import RavenForCausalLM, bundled_checkpoint
from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.serving.server import build_app, choose_sampler
from support import tiny_config
from support.serving import running, serving

HASTY = {"wavefront": 8, "inner_recurrence": 1, "exit_threshold": 1e6, "seed": 0}
"""One recurrence a token: no other way of decoding says quite the same."""


LIMIT = 30
"""Tokens of an answer: the hasty sampler need not find the end."""

PLAIN = {"sampler": "autoregressive", "num_steps": 8, "seed": 0}
"""Enough recurrences for another text than the hasty sampler's."""


def generate(bundled, prompt: str, **settings) -> str:
    model, tokenizer = bundled
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, **{"sampler": "diffusion_forcing", "max_new_tokens": LIMIT} | settings)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def telling(bundled):
    """Prompts where the hasty sampler and autoregression differ, so that a text tells which of them wrote it."""
    found = []
    for problem in islice(problems(3, held_out=True, kind="worked"), 30):
        hasty = generate(bundled, problem.prompt, **HASTY)
        if hasty != generate(bundled, problem.prompt, **PLAIN):
            found.append((problem.prompt, hasty))
        if len(found) == 2:
            return found
    raise AssertionError("one recurrence a token is as good as eight")


@pytest.fixture(scope="module")
def server(bundled, tmp_path_factory):
    """A checkpoint with the hasty sampler in its generation_config.json, served by the command: its name and port."""
    folder = tmp_path_factory.mktemp("served") / "hasty"
    model = AutoModelForCausalLM.from_pretrained(bundled_checkpoint())
    model.generation_config.sampler, model.generation_config.sampler_config = "diffusion_forcing", HASTY
    model.save_pretrained(folder)
    bundled[1].save_pretrained(folder)
    with serving(str(folder), "--prefill-chunk-size", "0") as port:
        yield str(folder), port


@pytest.fixture
def client(server):
    url = f"http://localhost:{server[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def ask(client, server):
    """Chat completions of the served model."""

    def ask(prompt, **kwargs):
        messages = [{"role": "user", "content": question(prompt)}]
        kwargs = {"max_tokens": LIMIT} | kwargs
        return client.chat.completions.create(model=server[0], messages=messages, **kwargs)

    return ask


def question(prompt: str) -> str:
    return prompt.removeprefix("Q: ").removesuffix("\nA:")


def test_models_are_listed(client, server):
    assert [model.id for model in client.models.list()] == [server[0]]


def test_chat(ask, bundled, telling):
    """With the stored sampler, whose text is not autoregression's."""
    for prompt, hasty in telling:
        answer = ask(prompt)
        assert answer.choices[0].message.content == hasty
        assert answer.choices[0].finish_reason == ("length" if answer.usage.completion_tokens == LIMIT else "stop")
        assert answer.usage.prompt_tokens == len(bundled[1](prompt).input_ids)


def test_chat_streamed(ask, telling):
    for prompt, hasty in telling:
        chunks = list(ask(prompt, stream=True))
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
        assert len(pieces) > 10
        assert "".join(pieces) == hasty
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_completions_and_responses(client, server, telling):
    prompt, hasty = telling[0]
    assert client.completions.create(model=server[0], prompt=prompt, max_tokens=LIMIT).choices[0].text == hasty
    response = client.responses.create(model=server[0], input=question(prompt), max_output_tokens=LIMIT, stream=False)
    assert response.output_text == hasty


def test_limits(ask, telling, bundled):
    prompt, _ = telling[0]
    cut = ask(prompt, max_tokens=5)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 5
    assert cut.choices[0].message.content == generate(bundled, prompt, max_new_tokens=5, **HASTY)
    stopped = ask(prompt, stop=["."])
    expected = generate(bundled, prompt, stop_strings=["."], tokenizer=bundled[1], **HASTY)
    assert stopped.choices[0].message.content == expected[: expected.index(".")]
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(prompt, stop=[". ", "."], stream=True)]
    assert "".join(pieces) == expected[: expected.index(".")]


def test_a_request_can_bring_its_own_settings(ask, bundled, telling):
    """transformers' `generation_config` field, with a sampler in it."""
    prompt, hasty = telling[0]
    config = {"sampler": "autoregressive", "sampler_config": {"num_steps": 8, "seed": 0}}
    answer = ask(prompt, extra_body={"generation_config": json.dumps(config)}).choices[0].message.content
    assert answer == generate(bundled, prompt, **PLAIN) != hasty


@pytest.mark.parametrize(
    "named", [{"sampler": "diffusion_forcing", "sampler_config": HASTY}, {}], ids=["own", "stored"]
)
def test_seeds_of_requests_at_the_same_time(ask, bundled, telling, named):
    """Every request is sampled with its own seed, whatever else is on its way and whoever names the sampler."""
    prompt = telling[0][0]
    sampled = {"do_sample": True, "temperature": 3.0}
    config = json.dumps(sampled | named)

    def sample(seed):
        answer = ask(prompt, seed=seed, max_tokens=12, extra_body={"generation_config": config})
        return answer.choices[0].message.content

    seeds = [1, 2, 3, 4] * 2
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(sample, seeds))
    assert texts == [generate(bundled, prompt, max_new_tokens=12, **sampled, **HASTY | {"seed": n}) for n in seeds]
    assert len(set(texts)) == 4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"max_tokens": 9999}, "exceeds the context of 4096"),
        ({"extra_body": {"generation_config": '{"sampler": "diffusion"}'}}, "did you mean 'diffusion_forcing'"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "'system' is unknown"),
        ({"model": "another"}, "requested 'another'"),
        ({"extra_body": {"wavefront": 4}}, "Unexpected fields"),
    ],
)
def test_bad_requests(client, server, request_, message):
    """An error that says why, and the next request is answered."""
    messages = [{"role": "user", "content": "Start at 3 + 2. Last digit?"}]
    whole = {"model": server[0], "messages": messages, "max_tokens": 2}
    with pytest.raises((openai.BadRequestError, openai.UnprocessableEntityError), match=message):
        client.chat.completions.create(**whole | request_)
    assert client.chat.completions.create(**whole).usage.completion_tokens == 2


def post(server, path, **request):
    """The answer of the server to a body as it is, over HTTP: status and JSON."""
    answer = httpx2.post(f"http://localhost:{server[1]}/v1/{path}", timeout=120, **request)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("path", "limit", "text"),
    [
        ("chat/completions", "max_tokens", {"messages": [{"role": "user", "content": "Start at 3 + 2."}]}),
        ("completions", "max_tokens", {"prompt": "Q: Start at 3 + 2."}),
        ("responses", "max_output_tokens", {"input": "Start at 3 + 2."}),
    ],
)
def test_a_stream_is_refused_before_it_begins(server, path, limit, text):
    status, body = post(server, path, json=text | {limit: 9999, "stream": True})
    assert status == 400 and "exceeds the context of 4096" in body["error"]["message"]
    answer = httpx2.post(f"http://localhost:{server[1]}/v1/{path}", timeout=120, json=text | {limit: 3, "stream": True})
    assert answer.status_code == 200 and answer.text.startswith(("data: ", "event: "))
    status, body = post(server, path, json={limit: 3, "stream": False})
    assert status == 400 and body["error"]["message"] == f"The request lacks the field {next(iter(text))!r}."


@pytest.mark.parametrize("content", [b"[1, 2]", b"{", b'"text"'])
def test_a_body_that_is_no_object(server, content):
    status, body = post(server, "completions", content=content, headers={"Content-Type": "application/json"})
    assert status == 400 and body["error"]["message"]


def test_a_message_that_lacks_a_field(server):
    status, body = post(server, "chat/completions", json={"messages": [{"content": "Hello"}]})
    assert status == 400 and body["error"]["message"] == "The request lacks the field 'role'."


MESSAGE = 'it said "no",\nand a \\ too'


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_json_whatever_its_message_holds(bundled, stream):
    """The model fails in the middle of the text."""
    model, tokenizer = copy.deepcopy(bundled[0]), bundled[1]
    choose_sampler(model, "diffusion_forcing", **HASTY)
    left = [40]

    def failing(module, args, output):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError(MESSAGE)

    model.transformer.core_block[0].register_forward_hook(failing)
    with running(build_app(model, tokenizer, "it", max_batch_size=1)) as port:
        sent = {"prompt": "Q: Start at 3 + 2.", "max_tokens": 500, "stream": stream}
        answer = httpx2.post(f"http://localhost:{port}/v1/completions", json=sent, timeout=120)
        lines = answer.text.strip().split("\n\n") if stream else [answer.text]
        bodies = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert answer.status_code == (200 if stream else 500)
    assert bodies[-1] == {"error": {"message": MESSAGE, "type": "server_error"}}
    assert all(body["choices"] for body in bodies[:-1]) and (len(bodies) > 1) == stream


def test_a_client_that_leaves(ask, telling):
    prompt, hasty = telling[0]
    stream = ask(prompt, stream=True)
    next(iter(stream))
    stream.close()
    assert ask(prompt).choices[0].message.content == hasty


def test_the_sampler_of_a_served_model():
    model = RavenForCausalLM(tiny_config())
    config = model.generation_config
    choose_sampler(model)
    assert (config.sampler, config.sampler_config) == ("diffusion_forcing", {})
    config.sampler_config = {"wavefront": 8, "headway": 2}
    choose_sampler(model, wavefront=4)
    assert config.sampler_config == {"wavefront": 4, "headway": 2}
    config.sampler_preset = "fast"
    choose_sampler(model, "autoregressive", num_steps=3)
    assert (config.sampler, config.sampler_config, config.sampler_preset) == ("autoregressive", {"num_steps": 3}, None)
    with pytest.raises(ValueError, match="inner_recurrence=7 is more than num_steps=6"):
        choose_sampler(model, "diffusion_forcing", inner_recurrence=7)
    assert config.sampler == "autoregressive"
    config.sampler, config.sampler_preset, config.sampler_config = None, "quality", None
    choose_sampler(model, num_steps=2)  # less than the preset's inner recurrence
    assert model.decoding_config().sampler_config.inner_recurrence == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "diffusion"], "did you mean 'diffusion_forcing'"),
        (["--wavefront", "0"], "wavefront=0 must be at least 1"),
        (["--dtype", "int3"], "could not be loaded"),
        (["no/such/folder"], "could not be loaded"),
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--max-batch-tokens", "many"], "--max-batch-tokens many must be an integer or auto"),
        (["--request-timeout", "0"], "request_timeout=0 leaves no time"),
    ],
)
def test_what_cannot_be_served(arguments, message):
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "openai", "prometheus_client"])
def test_without_the_extra(package, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hf_diffusion_forcing.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 2
    assert 'pip install "hf-diffusion-forcing[serve]"' in result.stderr
