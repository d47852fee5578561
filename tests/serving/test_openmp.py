"""Threads of the engine beside those of the thread that started it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
import torch
from hf_diffusion_forcing.serving.openmp import release_threads

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
release_threads()  # there are none
before = threads()
x = torch.ones(1000, 1000)
for _ in range(2):
    x.exp().sum()
    assert threads() == before + 2
    release_threads()
    assert threads() == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux.")
def test_threads_end_and_come_back():
    # One process of its own: other tests have threads too.
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
