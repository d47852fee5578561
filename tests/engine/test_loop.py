"""Rows join and leave between ticks; each gets the text it would have alone."""

import pytest
import torch

from hf_diffusion_forcing.generation.loop import Loop
from hf_diffusion_forcing.generation.samplers import SAMPLERS
from hf_diffusion_forcing.settings.sampler_config import sampler_config_class
from support.heads import with_start_head
from support.matrix import crossed
from support.rows import CPU, row

SETTINGS = {
    "diffusion_forcing": {"wavefront": 6, "inner_recurrence": 2, "num_steps": 8},
    "diffusion_forcing unshared": {"wavefront": 6, "inner_recurrence": 2, "num_steps": 8, "kv_sharing": "none"},
    "diffusion_forcing with hooks": {
        "wavefront": 6,
        "inner_recurrence": 1,
        "num_steps": 8,
        "continuous_compute": True,
        "embedding_momentum": 0.1,
        "state_noise": 0.1,
        "latent_processors": ["anderson"],
        "adaptive_prefill": True,
    },
    "diffusion_forcing learned start": {"wavefront": 4, "headway": 2, "num_steps": 8, "learned_start": True},
    "adaptive": {"num_steps": 8},
    "adaptive learned start": {"num_steps": 8, "learned_start": True},
    "adaptive kl": {"num_steps": 8, "exit_criterion": "kl", "kv_sharing": 3},
    "speculative_wavefront": {"num_steps": 8, "draft_depth": 2, "second_draft_depth": 4},
}


@pytest.mark.parametrize(
    ("name", "is_sampling"),
    crossed(
        SETTINGS,
        [False, True],
        keep=[
            ("diffusion_forcing with hooks", True),
            ("diffusion_forcing unshared", False),
            ("adaptive kl", False),
            ("adaptive learned start", False),
            ("diffusion_forcing learned start", False),
            ("speculative_wavefront", True),
        ],
    ),
)
@torch.no_grad()
def test_rows_join_and_leave_between_ticks(huginn_mini, prompts, name, is_sampling):
    sampler, model = name.split()[0], with_start_head(huginn_mini)
    config = sampler_config_class(sampler)(**SETTINGS[name]).resolve(model.config.mean_recurrence)
    lengths = [20, 6, 9, 14, 4, 8]
    texts = [prompts[index % len(prompts)][: 30 + 10 * index] for index in range(len(lengths))]
    rows = [row(text, length, 3 + i, is_sampling) for i, (text, length) in enumerate(zip(texts, lengths, strict=True))]
    cache = model.new_cache(config.deepest, config.kv_sharing)
    loop = Loop(SAMPLERS[sampler](model, cache, config, CPU), cache)
    waiting = rows[:]
    loop.join([waiting.pop(0), waiting.pop(0)])
    most = ticks = 0
    while loop.rows or waiting:
        if waiting and ticks % 3 == 0:
            loop.join([waiting.pop(0)])
        loop.tick()
        ticks += 1
        most = max(most, len(loop.rows))
    assert most >= 3 and {len(r.ids) - r.prompt_length for r in rows} == set(lengths)
    loop.restore_seats(rows)
    assert loop.seated == rows
    for i, (r, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = model.generate(
            torch.tensor([texts[i]]),
            sampler=sampler,
            seed=3 + i,
            max_new_tokens=length,
            do_sample=is_sampling,
            **SETTINGS[name],
        )
        assert r.ids == alone[0].tolist()
