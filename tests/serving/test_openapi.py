"""The OpenAPI document, and schemathesis' requests made from it: refused or answered, never an error of the server."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from hf_diffusion_forcing.serving.fields import TYPES
from hf_diffusion_forcing.serving.server import ServiceLimits, build_app
from support.batching import no_thread_left
from support.serving import running

MINUTE = 400
"""Requests of each kind and route that schemathesis makes in about a minute."""


@pytest.fixture(scope="module")
def port(bundled):
    app = build_app(*bundled, "it", limits=ServiceLimits(max_new_tokens=4), max_batch_tokens=256)
    with no_thread_left(), running(app) as port:
        yield port


@pytest.fixture(scope="module")
def paths(port):
    return httpx2.get(f"http://localhost:{port}/openapi.json").json()["paths"]


def bodies(paths):
    return {
        path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, methods in paths.items()
        if "post" in methods
    }


def test_every_field_is_documented(paths):
    named = {name for schema in bodies(paths).values() for name in schema["properties"]}
    assert named == set(TYPES)
    assert set(paths) == {*bodies(paths), "/v1/models", "/health", "/metrics"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_the_servers_fault(port, paths, tmp_path, mode):
    """Half of them with what the document allows, half with what it does not."""
    paths = copy.deepcopy(paths)
    for schema in bodies(paths).values():
        # A random text is hardly ever JSON, and a name never the model's: all would be refused for that alone.
        for name in ("generation_config", "model"):
            schema["properties"].pop(name)
        schema["properties"].get("n", {})["maximum"] = 3
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps({"openapi": "3.1.0", "info": {"title": "it", "version": "1"}, "paths": paths}))
    url, tool = f"http://localhost:{port}", Path(sys.executable).with_name("schemathesis")
    command = [tool, "run", document, "--url", url, "--mode", mode, "--max-examples", str(MINUTE), "--seed", "1"]
    command += ["--checks", "not_a_server_error", "--no-color"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    assert httpx2.get(f"{url}/health").status_code == 200
    answer = {"prompt": "Q: 1 + 1\nA:", "max_tokens": 4}
    assert httpx2.post(f"{url}/v1/completions", json=answer, timeout=60).status_code == 200
