"""The command `hf-diffusion-forcing serve` in a process of its own."""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from threading import Thread

import uvicorn


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[int]:
    """Run the server on a free port while the context lasts; gives the port once it listens. Ctrl+C ends it."""
    port = free_port()
    command = [sys.executable, "-m", "hf_diffusion_forcing", "serve", *arguments, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not listens(process, port):
                log.seek(0)
                raise AssertionError(f"the server did not start:\n{log.read()}")
            yield port
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def listens(process: subprocess.Popen, port: int, seconds: int = 120) -> bool:
    """Wait until the process takes connections; False if it ends or takes too long."""
    for _ in range(5 * seconds):
        if process.poll() is not None:
            return False
        try:
            socket.create_connection(("localhost", port)).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


@contextlib.contextmanager
def running(app) -> Iterator[int]:
    """Run an app in a thread of this process, on a free port, while the context lasts; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, host="localhost", port=0, log_level="critical"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.05)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
