"""Measure the server: many clients at once beside one request after the other.

    python scripts/measure_serving.py
    python scripts/measure_serving.py --checkpoint FOLDER --requests 4

Writes docs/benchmarks/serving.json and serving.md. Each preset has two servers, which take turns: the engine, and the
same with --max-batch-size 1 --no-prefix-reuse. Real HTTP clients on loopback stream chats that begin alike. Run the
script on an otherwise idle machine.
"""

import asyncio
import contextlib
import json
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import httpx2
import torch
import transformers
import typer
from openai import AsyncOpenAI
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.problems import problems

ROOT = Path(__file__).parent.parent
WAYS = {
    "fast": ["--preset", "fast"],
    "lossless": ["--preset", "lossless"],
    "adaptive": ["--sampler", "adaptive"],
}
"""Options of the server for each way to decode."""
SERIAL = ["--max-batch-size", "1", "--no-prefix-reuse"]
NEW_TOKENS = 48
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


async def ask(client: AsyncOpenAI, messages: list[dict[str, str]], new_tokens: int = NEW_TOKENS) -> tuple[Reply, str]:
    """One chat, streamed."""
    start, first, tokens, text = time.perf_counter(), None, 0, ""
    stream = await client.chat.completions.create(
        model=MODEL[0],
        messages=messages,
        max_tokens=new_tokens,
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


MODEL = ["bundled"]
"""The name of the served model."""


async def closed_loop(client: AsyncOpenAI, clients: int, requests: int, prompts: Iterator) -> list[Reply]:
    """Each client asks again as soon as it has its answer."""

    async def one() -> list[Reply]:
        return [(await ask(client, next(prompts)))[0] for _ in range(requests)]

    return [reply for replies in await asyncio.gather(*(one() for _ in range(clients))) for reply in replies]


async def poisson(client: AsyncOpenAI, rate: float, requests: int, prompts: Iterator) -> list[Reply]:
    """Requests arrive at random times, whatever is being answered."""
    draw, tasks = random.Random(0), []
    for _ in range(requests):
        tasks.append(asyncio.create_task(ask(client, next(prompts))))
        await asyncio.sleep(draw.expovariate(rate))
    return [reply for reply, _ in await asyncio.gather(*tasks)]


def positions(url: str) -> tuple[float, float]:
    """Positions of prompts so far, and those of them that were reused."""
    lines = dict(line.rsplit(" ", 1) for line in httpx2.get(f"{url}/metrics").text.splitlines() if line[0] != "#")
    return tuple(float(lines[f"hf_diffusion_forcing_engine_{name}_positions_total"]) for name in ("prompt", "reused"))


def measured(url: str, load: Callable[[AsyncOpenAI], Awaitable[list[Reply]]]) -> dict[str, float]:
    """The figures of one load on one server."""

    async def run() -> tuple[list[Reply], float]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
            start = time.perf_counter()
            return await load(client), time.perf_counter() - start

    before = positions(url)
    replies, seconds = asyncio.run(run())
    read, reused = (after - earlier for after, earlier in zip(positions(url), before, strict=True))
    firsts, normal = sorted(reply.first for reply in replies), [reply.per_token for reply in replies]
    return {
        "requests": len(replies),
        "requests_per_second": len(replies) / seconds,
        "tokens_per_second": sum(reply.tokens for reply in replies) / seconds,
        "first_token_median": statistics.median(firsts),
        "first_token_p95": firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))],
        "seconds_per_token": statistics.mean(normal),
        "fairness": max(normal) / statistics.median(normal),
        "prefix_hit_rate": reused / max(read, 1),
    }


def turns(url: str, repeats: int, copies: int, prompts: Iterator) -> dict[str, float]:
    """Medians over chats whose first message is a question `copies` times.

    Returns:
        Prompt tokens of the first turn, and seconds to the first token of both turns.
    """

    async def run() -> list[tuple[int, float, float]]:
        found = []
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
            for number in range(repeats):
                unread = [{"role": "user", "content": f"{number}: {next(prompts)[-1]['content']} " * copies}]
                before = positions(url)[0]
                cold, text = await ask(client, unread)
                length = positions(url)[0] - before
                more = [*unread, {"role": "assistant", "content": text}, {"role": "user", "content": "Last digit?"}]
                found.append((length, cold.first, (await ask(client, more, 8))[0].first))
        return found

    length, cold, second = map(statistics.median, zip(*asyncio.run(run()), strict=True))
    return {"prompt_tokens": length, "cold_first_token": cold, "second_turn_first_token": second}


def generate_rate(checkpoint: str, options: list[str], requests: int) -> float:
    """Tokens a second of `generate()` alone, with the server's chunks."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    keywords = {"sampler_preset" if options[0] == "--preset" else "sampler": options[1]}
    chunk = 32 if model.decoding_config(None, **keywords).sampler_config.sees_chunks else None
    tokens, seconds = 0, 0.0
    for number, chat in zip(count(), islice(chats(), requests + 1)):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        start = time.perf_counter()
        out = model.generate(**ids, **keywords, prefill_chunk_size=chunk, max_new_tokens=NEW_TOKENS, seed=0)
        if number:  # the first one warms up
            seconds, tokens = seconds + time.perf_counter() - start, tokens + out.shape[1] - ids["input_ids"].shape[1]
    return tokens / seconds


def measure_way(checkpoint: str | None, way: str, clients: list[int], requests: int) -> dict[str, Any]:
    """All loads of one way to decode, on both servers in turn."""
    model = [] if checkpoint is None else [checkpoint]
    found: dict[str, Any] = {
        "generate_tokens_per_second": generate_rate(checkpoint or str(bundled_checkpoint()), WAYS[way], requests)
    }
    with serving(*model, *WAYS[way]) as engine, serving(*model, *WAYS[way], *SERIAL) as serial:
        urls = {"engine": engine, "serial": serial}
        # The same questions for both, and none twice: only their beginning is shared.
        asked = {name: chats() for name in urls}
        for name, url in urls.items():
            measured(url, lambda client, own=asked[name]: closed_loop(client, 2, 1, own))
        for number in tqdm(clients, desc=way):
            found[f"{number} clients"] = {
                name: measured(url, lambda client, n=number, own=asked[name]: closed_loop(client, n, requests, own))
                for name, url in urls.items()
            }
        busiest = found[f"{8 if 8 in clients else clients[-1]} clients"]["engine"]["requests_per_second"]
        found["poisson"] = {
            name: measured(url, lambda client, own=asked[name]: poisson(client, LOAD * busiest, 4 * requests, own))
            for name, url in urls.items()
        }
        found["turns"] = [turns(engine, requests, copies, asked["engine"]) for copies in COPIES]
    return found


def as_markdown(report: dict[str, Any]) -> str:
    """The tables."""
    head = "| load | server | tokens/s | first token: median | p95 | s/token | max/median | prefix hits |"
    lines = ["# Serving", "", report["about"], ""]
    for way, found in report["ways"].items():
        lines += [f"## {way}", "", head, "| --- | --- " + "| ---: " * 6 + "|"]
        for load, servers in found.items():
            if load in ("turns", "generate_tokens_per_second"):
                continue
            for server, cell in servers.items():
                lines.append(
                    f"| {load} | {server} | {cell['tokens_per_second']:.1f} | {cell['first_token_median']:.2f} s | "
                    f"{cell['first_token_p95']:.2f} s | {cell['seconds_per_token']:.3f} | {cell['fairness']:.2f} | "
                    f"{cell['prefix_hit_rate']:.0%} |"
                )
        lines += ["", f"`generate()` alone: {found['generate_tokens_per_second']:.1f} tokens/s.", ""]
        for pair in found["turns"]:
            cold, second = pair["cold_first_token"], pair["second_turn_first_token"]
            lines.append(
                f"- A chat of {pair['prompt_tokens']:.0f} tokens that nobody has read: first token after {cold:.2f} s, "
                f"in its second turn after {second:.2f} s ({second / cold:.2f} of it)."
            )
        lines.append("")
    return "\n".join(lines)


def main(
    checkpoint: Annotated[str | None, typer.Option(help="A folder; the bundled checkpoint by default.")] = None,
    ways: Annotated[str, typer.Option(help="Ways to decode, with commas.")] = ",".join(WAYS),
    clients: Annotated[str, typer.Option(help="Numbers of clients, with commas.")] = "1,4,8,16",
    requests: Annotated[int, typer.Option(help="Requests of each client.", min=1)] = 3,
    output: Annotated[Path, typer.Option(help="The JSON file; the Markdown goes beside it.")] = ROOT
    / "docs/benchmarks/serving.json",
) -> None:
    MODEL[0] = checkpoint or "bundled"
    report: dict[str, Any] = {
        "about": (
            f"Measured on {date.today()} with {Path(checkpoint).name if checkpoint else 'the bundled checkpoint'} on "
            f"{platform.machine()} with {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
            f"{transformers.__version__}; {NEW_TOKENS} new tokens at most, {requests} requests a client. `engine` is "
            f"the server, `serial` the same with `{' '.join(SERIAL)}`; they take turns on the same machine as the "
            "clients. Written by scripts/measure_serving.py."
        ),
        "ways": {},
    }
    numbers = [int(number) for number in clients.split(",")]
    for way in ways.split(","):
        report["ways"][way] = measure_way(checkpoint, way, numbers, requests)
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(as_markdown(report))


if __name__ == "__main__":
    typer.run(main)
