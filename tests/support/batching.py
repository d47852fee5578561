"""Continuous batching beside the same requests alone."""

import contextlib
import threading

import torch

SETTINGS = {
    "diffusion_forcing": {"sampler": "diffusion_forcing", "wavefront": 6, "inner_recurrence": 2, "num_steps": 8},
    "fast": {"sampler_preset": "fast", "num_steps": 8},
    "lossless": {"sampler_preset": "lossless", "num_steps": 8},
    "adaptive": {"sampler": "adaptive", "num_steps": 8},
    "autoregressive": {"sampler": "autoregressive", "num_steps": 8},
    "autoregressive shared": {"sampler": "autoregressive", "num_steps": 8, "kv_sharing": "last"},
    "no sampler": {"num_steps": 8},
    "hooks": {
        "sampler": "diffusion_forcing",
        "num_steps": 8,
        "wavefront": 6,
        "inner_recurrence": 1,
        "continuous_compute": True,
        "embedding_momentum": 0.1,
        "state_noise": 0.1,
    },
    "learned start": {"sampler": "diffusion_forcing", "wavefront": 4, "num_steps": 8, "learned_start": True},
    "adaptive learned start": {"sampler": "adaptive", "num_steps": 8, "learned_start": True},
    "unshared": {"sampler": "diffusion_forcing", "wavefront": 4, "num_steps": 8, "kv_sharing": "none"},
    "chunks": {"sampler": "diffusion_forcing", "wavefront": 4, "num_steps": 8, "prefill_chunk_size": 5},
    "auto": {"sampler": "diffusion_forcing", "wavefront": "auto", "num_steps": 8},
    "auto drafts": {"sampler": "speculative_wavefront", "draft_depth": "auto", "num_steps": 8},
}
"""Ways to decode, by what is special about them."""


def alone(model, prompt, **keywords):
    """The new tokens of a prompt that `generate()` decodes by itself."""
    return model.generate(torch.tensor([prompt]), **keywords)[0, len(prompt) :].tolist()


@contextlib.contextmanager
def no_thread_left():
    """What starts threads must end them."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and thread.name != "tqdm_monitor"]
    assert not [thread for thread in left if "continuous" in thread.name], left
