"""Streamers get each committed token once and in order; drafts go to those who take them."""

import torch
from transformers.generation.streamers import BaseStreamer


class Recorder(BaseStreamer):
    def __init__(self):
        self.committed, self.drafts, self.ended = [], [], 0

    def put(self, value):
        self.committed += value.flatten().tolist()

    def put_draft(self, value, **kwargs):
        self.drafts.append(value.tolist())

    def end(self):
        self.ended += 1


def test_tokens_and_drafts(huginn_mini, prompts):
    streamer = Recorder()
    ids = huginn_mini.generate(
        torch.tensor([prompts[0]]),
        sampler="diffusion_forcing",
        num_steps=8,
        inner_recurrence=1,
        wavefront=6,
        max_new_tokens=24,
        streamer=streamer,
    )
    assert streamer.committed == ids[0].tolist()
    assert streamer.ended == 1
    assert streamer.drafts and all(1 <= len(draft) < 6 for draft in streamer.drafts)


class Stop(Recorder):
    def put(self, value):
        super().put(value)
        if len(self.committed) > 140:
            raise KeyboardInterrupt


def test_an_interrupt_leaves_the_model_usable(huginn_mini, prompts):
    common = {"sampler": "diffusion_forcing", "num_steps": 8, "seed": 0, "max_new_tokens": 12}
    before = huginn_mini.generate(torch.tensor([prompts[0]]), **common)
    try:
        huginn_mini.generate(torch.tensor([prompts[0]]), **common, streamer=Stop())
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the streamer was not called")
    assert huginn_mini.generate(torch.tensor([prompts[0]]), **common).tolist() == before.tolist()
