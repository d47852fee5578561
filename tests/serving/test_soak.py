"""Ten minutes under load: the server's memory, threads and files do not grow."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil
import pytest

from hf_diffusion_forcing.evaluation.problems import problems
from support.serving import serving

SECONDS, CLIENTS = 600, 6
GROWTH = 1.05
"""The most that the memory of the second half may be over that of the first; allocators keep a little."""
SAMPLERS = (None, "speculative_wavefront", "adaptive", "autoregressive")
"""Of a request; None is the server's own."""


def ask(url: str, deadline: float, number: int) -> dict[str, int]:
    """One client: requests one after the other until the deadline, some of which it leaves early."""
    chance, drawn = random.Random(number), problems(number, held_out=True, kind="worked")
    counts = {"whole": 0, "left": 0}
    with httpx2.Client(base_url=url, timeout=120) as client:
        while time.monotonic() < deadline:
            body = {"prompt": next(drawn).prompt, "max_tokens": chance.choice([1, 8, 40]), "stream": True}
            if sampler := chance.choice(SAMPLERS):
                body["generation_config"] = json.dumps({"sampler": sampler, "sampler_config": {"num_steps": 8}})
            leaves = chance.random() < 0.2
            with client.stream("POST", "/v1/completions", json=body) as answer:
                assert answer.status_code == 200, answer.read()
                for _ in answer.iter_lines():
                    if leaves:
                        break
            counts["left" if leaves else "whole"] += 1
    return counts


def gauge(url: str, name: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"hf_diffusion_forcing_engine_{name} "))


@pytest.mark.slow
def test_ten_minutes():
    with serving("--preset", "fast", "--max-batch-size", "4", "--seed", "0") as port:
        url = f"http://localhost:{port}"
        process = next(
            each for each in psutil.Process().children(recursive=True) if str(port) in " ".join(each.cmdline())
        )
        began, taken = time.monotonic(), []
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(ask, url, began + SECONDS, number) for number in range(CLIENTS)]
            while time.monotonic() < began + SECONDS:
                time.sleep(5)
                taken.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
            counts = [client.result() for client in clients]
        assert all(count["whole"] and count["left"] for count in counts)
        patience = time.monotonic() + 30
        while gauge(url, "rows") and time.monotonic() < patience:
            time.sleep(0.1)
        assert gauge(url, "rows") == gauge(url, "queue_length") == 0
    settled = taken[len(taken) // 10 :]  # the first minute allocates the seats
    middle = len(settled) // 2
    for first, second in zip(zip(*settled[:middle], strict=True), zip(*settled[middle:], strict=True), strict=True):
        assert max(second) <= GROWTH * max(first), taken
