"""Rows for the decoding loop."""

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from hf_diffusion_forcing.generation.call import Call
from hf_diffusion_forcing.generation.choice import TokenChoice
from hf_diffusion_forcing.generation.row import Row
from hf_diffusion_forcing.generation.stopping import Stopping

CPU = torch.device("cpu")


def row(prompt, new_tokens, seed, is_sampling):
    """A row of a call of its own."""
    ids = torch.tensor([prompt])
    room = len(prompt) + new_tokens
    choice = TokenChoice(ids, LogitsProcessorList(), room, None, is_sampling)
    call = Call(choice, Stopping(set(), room, StoppingCriteriaList(), CPU))
    return Row(call, 0, list(prompt), shift=0, seed=seed, last_position=room - 2)
