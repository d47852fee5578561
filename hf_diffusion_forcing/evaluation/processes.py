"""The processes of `accelerate launch` or `torchrun` that share a job."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from .journal import Journal

LONGEST_WAIT = timedelta(days=30)
"""How long a process waits for the others at most. Shares may take hours; torch's own limit of minutes is for steps of
a training. If a process dies, the launcher ends the others."""


def process_state() -> PartialState:
    """This process's rank and the number of processes. accelerate must be told if there is no accelerator; otherwise
    each process believes that it is the only one."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)


def is_split(model: torch.nn.Module) -> bool:
    """Whether the model is split over the processes, which then decode everything together."""
    return (getattr(model, "tp_size", None) or 1) > 1


def begin_together(journal: Journal | None) -> None:
    """The main process begins the journal, once all have checked it; then all may read it."""
    state = process_state()
    state.wait_for_everyone()
    if journal is not None and state.is_main_process:
        journal.begin()
    state.wait_for_everyone()
