"""Measure the server: many clients at once beside one request after the other.

    python scripts/measure_serving.py
    python scripts/measure_serving.py --part lossless

Each way to decode has two servers, which take turns: the engine, and the same with --max-batch-size 1
--no-prefix-reuse. Real HTTP clients on loopback stream chats that begin alike. The model is the bundled checkpoint, as
it is and 4 times as wide. Writes docs/benchmarks/serving.json and serving.md; a part replaces only its own rows. Run
the script on an otherwise idle machine.
"""

import asyncio
import contextlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import httpx2
import torch
from measure_lossless import FACTOR
from measured_parts import measure_parts, signature
from openai import AsyncOpenAI
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.generation.cost_curve import CostCurve, cost_curve

WAYS = {
    "fast": ["--preset", "fast"],
    "lossless": ["--preset", "lossless"],
    "adaptive": ["--sampler", "adaptive"],
}
"""Options of the server for each way to decode."""


CLIENTS = (1, 4, 8, 16)
SERIAL = ["--max-batch-size", "1", "--no-prefix-reuse"]
COPIES = (3, 12)
"""How often the first message of a chat repeats its question, where second turns are measured."""
LOAD = 0.7
"""Poisson arrivals come at this share of the rate that eight clients reached."""


@dataclass
class Reply:
    """One streamed answer: seconds to its first token and to its end, its tokens, and when it ended."""

    first: float
    seconds: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.seconds / max(self.tokens, 1)


def chats() -> Iterator[list[dict[str, str]]]:
    """Chats with the same two turns before a question of their own."""
    drawn = problems(11, held_out=True, kind="worked")
    turns = []
    for problem in islice(drawn, 2):
        turns += [{"role": "user", "content": question(problem)}, {"role": "assistant", "content": str(problem.answer)}]
    for problem in drawn:
        yield [*turns, {"role": "user", "content": question(problem)}]


def question(problem: Any) -> str:
    return problem.prompt.removeprefix("Q: ").removesuffix("\nA:")


@contextlib.contextmanager
def serving(*options: str) -> Iterator[str]:
    """The URL of a server while the context lasts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_diffusion_forcing", "serve", *options, "--port", str(port), "--seed", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("localhost", port)).close()
                break
            time.sleep(0.2)
        yield f"http://localhost:{port}"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()


class Clients:
    """Clients of one server.

    Args:
        client: connected to the server.
        model: its name there.
        prompts: the chats to send; none is sent twice.
        room: new tokens at most.
    """

    def __init__(self, client: AsyncOpenAI, model: str, prompts: Iterator[list[dict[str, str]]], room: int):
        self.client, self.model, self.prompts, self.room = client, model, prompts, room

    async def ask(self, messages: list[dict[str, str]] | None = None, room: int | None = None) -> tuple[Reply, str]:
        """One chat, streamed."""
        messages = messages or next(self.prompts)
        start, first, tokens, text = time.perf_counter(), None, 0, ""
        stream = await self.client.chat.completions.create(
            model=self.model,
            messages=messages,
            max_tokens=room or self.room,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - start
                text += chunk.choices[0].delta.content
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
        seconds = time.perf_counter() - start
        return Reply(first or seconds, seconds, tokens), text

    async def closed_loop(self, clients: int, requests: int) -> list[Reply]:
        """Each client asks again as soon as it has its answer."""

        async def one() -> list[Reply]:
            return [(await self.ask())[0] for _ in range(requests)]

        return [reply for replies in await asyncio.gather(*(one() for _ in range(clients))) for reply in replies]

    async def poisson(self, rate: float, requests: int) -> list[Reply]:
        """Requests arrive at random times, whatever is being answered."""
        draw, tasks = random.Random(0), []
        for _ in range(requests):
            tasks.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(draw.expovariate(rate))
        return [reply for reply, _ in await asyncio.gather(*tasks)]

    async def turns(self, repeats: int, copies: int, url: str) -> list[tuple[int, float, float]]:
        """Chats of two turns: prompt tokens of the first, and seconds to the first token of both."""
        found = []
        for number in range(repeats):
            unread = [{"role": "user", "content": f"{number}: {next(self.prompts)[-1]['content']} " * copies}]
            before = counts(url)["prompt_positions"]
            cold, text = await self.ask(unread)
            length = int(counts(url)["prompt_positions"] - before)
            more = [*unread, {"role": "assistant", "content": text}, {"role": "user", "content": "Last digit?"}]
            found.append((length, cold.first, (await self.ask(more, 8))[0].first))
        return found


class Server:
    """A running server, and the clients' chats with it.

    Args:
        url: its address.
        model: its folder, which is also its name there.
        room: new tokens at most.
    """

    def __init__(self, url: str, model: str, room: int):
        self.url, self.model, self.room, self.prompts = url, model, room, chats()

    def load(self, work: Callable[[Clients], Awaitable[list[Any]]]) -> tuple[list[Any], float]:
        """What the clients' work gives, and the seconds that it took."""

        async def run() -> tuple[list[Any], float]:
            async with AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
                start = time.perf_counter()
                done = await work(Clients(client, self.model, self.prompts, self.room))
                return done, time.perf_counter() - start

        return asyncio.run(run())

    def measured(self, work: Callable[[Clients], Awaitable[list[Reply]]]) -> dict[str, float]:
        """The figures of one load."""
        before = counts(self.url)
        replies, seconds = self.load(work)
        more = {name: value - before[name] for name, value in counts(self.url).items()}
        firsts, normal = sorted(reply.first for reply in replies), [reply.per_token for reply in replies]
        return {
            "requests": len(replies),
            "requests_per_second": len(replies) / seconds,
            "tokens_per_second": sum(reply.tokens for reply in replies) / seconds,
            "first_token_median": statistics.median(firsts),
            "first_token_p95": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
            "seconds_per_token": statistics.mean(normal),
            "fairness": max(normal) / statistics.median(normal),
            "prefix_hit_rate": more["reused_positions"] / max(more["prompt_positions"], 1),
            "positions_per_pass": more["positions_refined"] / max(more["core_passes"], 1),
        }


def counts(url: str) -> dict[str, float]:
    """Counts of the engine so far, as `BatchingStats` names them."""
    lines = dict(line.rsplit(" ", 1) for line in httpx2.get(f"{url}/metrics").text.splitlines() if line[0] != "#")
    start, end = "hf_diffusion_forcing_engine_", "_total"
    return {
        name[len(start) : -len(end)]: float(value)
        for name, value in lines.items()
        if name.startswith(start) and name.endswith(end)
    }


def generate_rate(model: Any, tokenizer: Any, options: list[str], requests: int, room: int) -> float:
    """Tokens a second of `generate()` alone, with the server's chunks."""
    keywords = {"sampler_preset" if options[0] == "--preset" else "sampler": options[1]}
    chunk = 32 if model.decoding_config(None, **keywords).sampler_config.sees_chunks else None
    tokens, seconds = 0, 0.0
    for number, chat in zip(count(), islice(chats(), requests + 1)):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        start = time.perf_counter()
        out = model.generate(**ids, **keywords, prefill_chunk_size=chunk, max_new_tokens=room, seed=0)
        if number:  # the first one warms up
            seconds, tokens = seconds + time.perf_counter() - start, tokens + out.shape[1] - ids["input_ids"].shape[1]
    return tokens / seconds


def bound(curve: CostCurve, alone: float, together: float) -> float:
    """How many times as many positions a core pass over `together` positions does in a second as one over `alone`."""

    def each(width: float) -> float:
        return (curve.seconds_per_tick(width, 2) - curve.seconds_per_tick(width, 1)) / width

    return each(alone) / each(together)


def rows(requests: int, room: int, way: str, factor: int) -> Iterator[dict]:
    """Yield the figures of all loads of one way to decode, on both servers in turn.

    Args:
        requests: of each client.
        factor: how many times as wide as the bundled checkpoint the model is.
    """
    model = AutoModelForCausalLM.from_pretrained(bundled_checkpoint(), dtype=torch.float32).eval()
    model = widen(model, factor).eval() if factor > 1 else model
    tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint())
    curve = cost_curve(model, 1, model.device)
    yield {"generate_tokens_per_second": generate_rate(model, tokenizer, WAYS[way], requests, room)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options = [folder, *WAYS[way]]
        with serving(*options) as engine_url, serving(*options, *SERIAL) as serial_url:
            servers = {"serial": Server(serial_url, folder, room), "engine": Server(engine_url, folder, room)}
            for server in servers.values():  # a warm-up
                server.load(lambda clients: clients.closed_loop(2, 1))
            rate = 0.0
            for number in tqdm([*CLIENTS, None], desc=way):
                alone = 0.0
                for name, server in servers.items():
                    if number is None:
                        found = server.measured(lambda clients, r=rate: clients.poisson(LOAD * r, 4 * requests))
                    else:
                        found = server.measured(lambda clients, n=number: clients.closed_loop(n, requests))
                    if name == "serial":
                        alone = found["positions_per_pass"]
                    else:
                        found["bound"] = bound(curve, alone, found["positions_per_pass"])
                    if (number, name) == (8, "engine"):
                        rate = found["requests_per_second"]
                    yield {"load": "Poisson" if number is None else f"{number} clients", "server": name} | found
            for copies in COPIES:
                found, _ = servers["engine"].load(lambda clients, n=copies: clients.turns(requests, n, engine_url))
                length, cold, second = map(statistics.median, zip(*found, strict=True))
                yield {"prompt_tokens": length, "cold_first_token": cold, "second_turn_first_token": second}


def page(part: dict, way: str, factor: int) -> list[str]:
    """The tables."""
    wide = "the bundled checkpoint as it is" if factor == 1 else f"the bundled checkpoint {factor} times as wide"
    lines = [
        f"## {way.capitalize()}, {wide}",
        "",
        f"{signature(part)} Float32, plain weights.",
        "",
        "| load | server | tokens/s | first token: median | p95 | s/token | max/median | prefix hits "
        "| positions a pass | bound |",
        "| --- | --- " + "| ---: " * 8 + "|",
    ]
    for cell in part["rows"]:
        if "load" in cell:
            lines.append(
                f"| {cell['load']} | {cell['server']} | {cell['tokens_per_second']:.1f} | "
                f"{cell['first_token_median']:.2f} s | {cell['first_token_p95']:.2f} s | "
                f"{cell['seconds_per_token']:.3f} | {cell['fairness']:.2f} | {cell['prefix_hit_rate']:.0%} | "
                f"{cell['positions_per_pass']:.1f} | " + (f"{cell['bound']:.1f}x |" if "bound" in cell else "|")
            )
    lines += ["", f"`generate()` alone: {part['rows'][0]['generate_tokens_per_second']:.1f} tokens/s.", ""]
    for pair in part["rows"]:
        if "prompt_tokens" in pair:
            cold, second = pair["cold_first_token"], pair["second_turn_first_token"]
            lines.append(
                f"- A chat of {pair['prompt_tokens']:.0f} tokens that nobody has read: first token after {cold:.2f} s, "
                f"in its second turn after {second:.2f} s ({second / cold:.2f} of it)."
            )
    return lines


NOTE = (
    "`engine` is the server, `serial` the same with `--max-batch-size 1 --no-prefix-reuse`; they take turns on the "
    "machine of the clients. *s/token* is a request's time over its new tokens, *max/median* the largest of these over "
    "the median. *Bound*: how many times as many positions a second a core pass does at the engine's width as at "
    "serial's, on this machine. What the engine gains beyond it comes from prompts that it did not read."
)
PARTS = {
    f"{way}{'' if factor > 1 else '-narrow'}": (
        partial(rows, way=way, factor=factor),
        partial(page, way=way, factor=factor),
    )
    for factor in (FACTOR, 1)
    for way in WAYS
}


if __name__ == "__main__":
    measure_parts(
        "serving", "Serving", PARTS, count=2, counted="Requests of each client.", max_new_tokens=48, note=NOTE
    )
