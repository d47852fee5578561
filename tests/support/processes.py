"""Runs a script in two processes of torch.distributed (gloo, on the CPU)."""

import json
import subprocess
import sys
from pathlib import Path


def run_in_two(script: str, folder: Path, *arguments) -> list:
    """What the script prints, a line of JSON from each process.

    Args:
        script: the code; `sys.argv[1:]` are the arguments as JSON.
        folder: for the script's file.
    """
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(folder / "script.py"), *map(json.dumps, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
