"""Many clients at once: every text as alone, nobody harmed by a neighbour, nothing lost when the server stops."""

import contextlib
import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx2
import openai
import pytest

from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.serving.access import check_host
from hf_diffusion_forcing.serving.server import ServiceLimits, build_app, reuse_prompts
from hf_diffusion_forcing.serving.text_stream import StopCut
from support.batching import no_thread_left
from support.serving import free_port, listens, running

FAST = {"sampler_preset": "fast", "num_steps": 8}
LIMIT = 16
PROMPTS = [problem.prompt for problem in islice(problems(3, held_out=True, kind="worked"), 8)]


def served(bundled, **keywords):
    """The application around the bundled model, decoding fast."""
    model = copy.copy(bundled[0])
    model.generation_config = copy.copy(model.generation_config)
    model.generation_config.sampler_preset = "fast"
    model.generation_config.sampler_config = {"num_steps": 8, "seed": 0}
    return build_app(model, bundled[1], "it", **{"max_batch_tokens": 256} | keywords)


@pytest.fixture(scope="module")
def app(bundled):
    return served(bundled)


@pytest.fixture(scope="module")
def port(app):
    with no_thread_left(), running(app) as port:
        yield port


@pytest.fixture
def client(port):
    with openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def alone(bundled, prompt, **keywords):
    """The text that `generate()` writes, without the answer's end, and its tokens."""
    model, tokenizer = bundled
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, **FAST | {"max_new_tokens": LIMIT, "seed": 0} | keywords)
    tokens = ids[0, inputs.input_ids.shape[1] :].tolist()
    return tokenizer.decode(tokens, skip_special_tokens=True), tokens


def post(port, body, path="completions", **keywords):
    url = f"http://localhost:{port}/v1/{path}"
    return httpx2.post(url, timeout=120, **{"json": body} | keywords)


def raw(port, body):
    """A socket on which a request for a long text was sent."""
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("localhost", port), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def eventually(check, seconds=30):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


ENDLESS = {
    "prompt": PROMPTS[0],
    "generation_config": json.dumps({"min_new_tokens": 3000, "max_new_tokens": 3000}),
    "stream": True,
}
"""A text that does not end before a test does."""


def test_eight_clients_at_once(client, bundled):
    """Half of them stream; each with its own seed."""

    def ask(number):
        stream = bool(number % 2)
        answer = client.completions.create(
            model="it", prompt=PROMPTS[number], max_tokens=LIMIT, seed=number, stream=stream
        )
        if stream:
            return "".join(chunk.choices[0].text for chunk in answer)
        return answer.choices[0].text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(8)))
    assert texts == [alone(bundled, prompt, seed=number)[0] for number, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("stream", [False, True])
def test_n_logprobs_and_usage(client, bundled, stream):
    sampled = json.dumps({"do_sample": True, "temperature": 5.0})
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = client.completions.create(
        model="it", prompt=PROMPTS[1], n=3, logprobs=0, max_tokens=LIMIT, seed=5, stream=stream, **options,
        extra_body={"generation_config": sampled},
    )  # fmt: skip
    chunks = list(answer) if stream else [answer]
    texts, values, counts = [""] * 3, [[], [], []], []
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.text
        values[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    expected = [alone(bundled, PROMPTS[1], seed=5 + n, do_sample=True, temperature=5.0) for n in range(3)]
    assert texts == [text for text, _ in expected] and len(set(texts)) > 1
    assert [len(own) for own in values] == [len(tokens) for _, tokens in expected]
    assert all(math.isfinite(value) and value <= 0 for own in values for value in own)
    assert counts == [sum(len(tokens) for _, tokens in expected)]


def test_chat_logprobs_are_the_models(client, bundled):
    question = {"role": "user", "content": PROMPTS[2].removeprefix("Q: ").removesuffix("\nA:")}
    whole = {"model": "it", "messages": [question], "max_tokens": 5, "logprobs": True, "seed": 0}
    content = client.chat.completions.create(**whole).choices[0].logprobs.content
    chunks = list(client.chat.completions.create(**whole, stream=True))
    streamed = [each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert content == streamed and not any(chunk.usage for chunk in chunks)
    text, tokens = alone(bundled, PROMPTS[2], max_new_tokens=5)
    assert "".join(each.token for each in content) == text and len(content) == len(tokens)


def test_logit_bias(client, bundled):
    _, tokens = alone(bundled, PROMPTS[0], max_new_tokens=1)
    banned = {"role": "user", "content": PROMPTS[0].removeprefix("Q: ").removesuffix("\nA:")}
    answer = client.chat.completions.create(
        model="it", messages=[banned], max_tokens=1, logit_bias={str(tokens[0]): -100}
    )
    assert answer.choices[0].message.content != bundled[1].decode(tokens)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"response_format": {"type": "json_object"}}, "'response_format' is not supported"),
        ({"top_logprobs": 3, "logprobs": True}, "'top_logprobs' is not supported"),
        ({"n": 17}, "n=17 must be between 1 and 16"),
        ({"n": True}, "'n' must be int"),
        ({"stop": [""]}, "'stop' must be a text"),
        ({"logit_bias": [1]}, "'logit_bias' must be dict"),
        ({"logit_bias": {"100000": 1}}, "tokens are 0 to"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": ["hello"]}, "must be a list of objects, not of str"),
        ({"generation_config": '{"num_return_sequences": 2}'}, "pass n"),
        ({"generation_config": '{"num_beams": 2}'}, "cannot do beam_search"),
        ({"stream_options": {"include_usage": True}}, "needs stream=true"),
    ],
)
def test_what_is_refused_by_name(port, body, message):
    whole = {"messages": [{"role": "user", "content": "Start at 3."}], "max_tokens": 2}
    answer = post(port, whole | body, "chat/completions")
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_seat(app, port, stream):
    """A real socket that is closed in the middle of the text; the row is gone long before its 3000 tokens."""
    service = app.state.service
    with raw(port, ENDLESS | {"stream": stream}) as connection:
        eventually(lambda: service.manager.load.rows == 1)
        if stream:
            with connection.makefile("rb") as lines:
                assert any(line.startswith(b"data: ") for line in lines)
    eventually(lambda: not service.manager.load.rows and not service.visits)


@pytest.mark.parametrize("way", ["half-closed", "no body", "half a head"])
def test_others_are_not_harmed(app, port, bundled, way):
    """By clients who stop sending in the middle: theirs is dropped, the next one's text is as ever."""
    if way == "half-closed":
        connection = raw(port, ENDLESS)
        connection.shutdown(socket.SHUT_WR)
    else:
        connection = socket.create_connection(("localhost", port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: it\r\nContent-Length: 100\r\n"
        connection.sendall(head + (b"\r\n{" if way == "no body" else b""))
    with connection:
        answer = post(port, {"prompt": PROMPTS[3], "max_tokens": LIMIT})
        assert answer.json()["choices"][0]["text"] == alone(bundled, PROMPTS[3])[0]
    eventually(lambda: not app.state.service.manager.load.rows and not app.state.service.visits)


def test_metrics_and_health(port, bundled):
    url = f"http://localhost:{port}"

    def value(name):
        lines = httpx2.get(f"{url}/metrics").text.splitlines()
        (line,) = (line for line in lines if line.startswith(f"hf_diffusion_forcing_{name} "))
        return float(line.split()[-1])

    before = value("engine_tokens_total")
    post(port, {"prompt": PROMPTS[4], "max_tokens": 4})
    assert value("engine_tokens_total") - before == 4
    assert value("engine_ticks_total") > 0 and value("engine_queue_length") == value("engine_rows") == 0
    text = httpx2.get(f"{url}/metrics").text
    assert 'http_requests_total{outcome="finished",path="/v1/completions",status="200"}' in text
    assert 'time_to_first_token_seconds_count{path="/v1/completions"}' in text
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx2.post(f"{url}/load_model", json={"model": "it"}).status_code == 404


def test_limits_of_a_request(bundled):
    """A key, a bound on the body, on the new tokens, on the time, and on the queue."""
    limits = ServiceLimits(max_request_bytes=600, request_timeout=6.0, max_new_tokens=3000)
    app = served(bundled, api_key="a secret", limits=limits, max_batch_size=1, max_queue_size=1)
    keyed = {"headers": {"Authorization": "Bearer a secret"}}
    with running(app) as port, contextlib.ExitStack() as open_:
        for headers in ({}, {"Authorization": "Bearer a secre"}, {"Authorization": "Basic a secret"}):
            assert post(port, {"prompt": "Q"}, headers=headers).status_code == 401
        assert httpx2.get(f"http://localhost:{port}/health").status_code == 200
        assert httpx2.get(f"http://localhost:{port}/metrics").status_code == 401
        answer = post(port, {"prompt": "Q" * 600}, **keyed)
        assert answer.status_code == 413 and "600 bytes" in answer.json()["error"]["message"]
        answer = post(port, {"prompt": "Q", "max_tokens": 3001}, **keyed)
        assert answer.status_code == 400 and "max_tokens=3001" in answer.json()["error"]["message"]

        pool = open_.enter_context(ThreadPoolExecutor(2))
        started = pool.submit(post, port, ENDLESS, **keyed)
        load = lambda: app.state.service.manager.load  # noqa: E731
        eventually(lambda: load().rows == 1)
        waiting = pool.submit(post, port, ENDLESS | {"stream": False}, **keyed)
        eventually(lambda: load().waiting == 1)
        full = post(port, {"prompt": "Q"}, **keyed)
        assert full.status_code == 503 and full.headers["Retry-After"] == "1"
        last = started.result().text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "The request took longer than 6 seconds."
        assert waiting.result().status_code == 504
        eventually(lambda: load().rows == load().waiting == 0)


def test_a_slow_body(bundled):
    with running(served(bundled, limits=ServiceLimits(request_timeout=0.5))) as port:
        connection = socket.create_connection(("localhost", port), timeout=30)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: it\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        connection.close()


def test_the_second_turn_of_a_chat_reuses_the_first(bundled):
    """With the server's own settings: chunks and a common seed. The texts are those without reuse."""
    turns = [{"role": "user", "content": f"{PROMPTS[5]} {PROMPTS[6]}"}]
    texts, rates = [], []
    for reuse in (True, False):
        app = served(bundled, prefix_reuse=reuse)
        model = app.state.service.manager.model
        model.generation_config.sampler_config = {"num_steps": 8}
        reuse_prompts(model)
        app.state.service.seed = 3
        with running(app) as port:
            first = post(port, {"messages": turns, "max_tokens": LIMIT}, "chat/completions").json()
            said = first["choices"][0]["message"]["content"]
            more = [*turns, {"role": "assistant", "content": said}, {"role": "user", "content": "Start at 3."}]
            second = post(port, {"messages": more, "max_tokens": LIMIT}, "chat/completions").json()
        texts.append([said, second["choices"][0]["message"]["content"]])
        rates.append(app.state.service.manager.stats.prefix_hit_rate)
    assert texts[0] == texts[1]
    assert rates[0] > 0.2 and rates[1] == 0


def test_sigterm_finishes_what_has_begun():
    """The stream goes on to its end, a new request gets 503, the log has a line for each, and the exit is clean.

    It is the second process of a launcher, so it takes the port after the one it is told."""
    port = free_port()
    command = [sys.executable, "-m", "hf_diffusion_forcing", "serve", "--preset", "fast", "--port", str(port - 1)]
    second = {"env": os.environ | {"LOCAL_RANK": "1"}, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **second) as process:
        try:
            assert listens(process, port)
            body = {"prompt": PROMPTS[0], "max_tokens": 200, "stream": True} | {
                "generation_config": json.dumps({"min_new_tokens": 200, "max_new_tokens": 200})
            }
            with httpx2.stream("POST", f"http://localhost:{port}/v1/completions", json=body, timeout=120) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                eventually(lambda: httpx2.get(f"http://localhost:{port}/health").status_code == 503)
                refused = post(port, {"prompt": "Q"})
                assert refused.status_code == 503 and refused.headers["Retry-After"]
                events = [line for line in lines if line]
            assert events[-1] == "data: [DONE]"
            assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
            assert process.wait(60) == 0
            log = process.stdout.read()
        finally:
            process.kill()
    requests = [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
    (ended,) = (each for each in requests if each["status"] == 200 and each["path"] == "/v1/completions")
    assert ended["completion_tokens"] == 200 and ended["outcome"] == "finished" and ended["first_token_seconds"] > 0
    assert PROMPTS[0][:20] not in log


@pytest.mark.parametrize("stops", [[], ["END"], ["ND", "aab"], ["x"]])
def test_a_stop_string_is_cut_however_the_text_is_split(stops):
    text = "aaab EN EENDx"
    ends = [text.index(stop) for stop in stops] or [len(text)]
    for size in (1, 2, 5, len(text)):
        cut = StopCut(stops)
        shown = [cut.feed(text[start : start + size]) for start in range(0, len(text), size)] + [cut.rest()]
        assert "".join(shown) == text[: min(ends)] and cut.is_over == bool(stops)


@pytest.mark.parametrize(
    ("host", "key", "message"),
    [("0.0.0.0", None, "there is no API key"), ("", None, "there is no API key"), ("localhost", " ", "printable")],
)
def test_nobody_listens_to_strangers_without_a_key(host, key, message):
    with pytest.raises(ValueError, match=message):
        check_host(host, key, allow_anonymous=False)
    check_host(host, "a key", allow_anonymous=False)
    check_host("127.0.0.1", None, allow_anonymous=False)
    check_host(host, None, allow_anonymous=True)
