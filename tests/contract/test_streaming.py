"""Streamers get each committed token once and in order; drafts go to those who take them."""

import asyncio
import re
from threading import Thread

import pytest
import torch
from transformers import AsyncTextIteratorStreamer, TextDiffusionStreamer, TextIteratorStreamer, TextStreamer

from support.streamers import Recorder

SAMPLERS = ["adaptive", "autoregressive", "diffusion_forcing", "speculative_wavefront"]


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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupt_leaves_the_callers_cache_usable(huginn_mini, prompts, sampler):
    """What was streamed before it is in the cache, and the text goes on from there."""
    ids = torch.tensor([prompts[0]])
    sharing = {"kv_sharing": "none" if sampler == "speculative_wavefront" else "last"}
    common = {"sampler": sampler, "num_steps": 8, "seed": 0, "max_new_tokens": 16} | sharing
    cache = huginn_mini.new_cache(8, **sharing)
    streamer = Stop()
    with pytest.raises(KeyboardInterrupt):
        huginn_mini.generate(ids, cache=cache, streamer=streamer, **common | {"max_new_tokens": 200})
    held = cache.get_seq_length()
    assert held >= len(prompts[0])
    text = torch.tensor([streamer.committed[: held + 1]])
    resumed = huginn_mini.generate(text, cache=cache, **common)
    assert resumed.shape[1] == text.shape[1] + 16
    assert cache.get_seq_length() == resumed.shape[1] - 1


@pytest.fixture(scope="module")
def told(bundled):
    """A prompt, and the text every streamer must give for it."""
    model, tokenizer = bundled
    inputs = tokenizer("Q: Start at 3 + 2. Last digit?\nA:", return_tensors="pt")
    common = {"max_new_tokens": 8, "seed": 0, "num_steps": 8}
    ids = model.generate(**inputs, sampler="diffusion_forcing", **common)
    return inputs | common, tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("streamer_class", [TextStreamer, TextDiffusionStreamer])
def test_text_streamers_print_the_text(bundled, told, capsys, streamer_class):
    model, tokenizer = bundled
    call, text = told
    streamer = streamer_class(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**call, sampler="diffusion_forcing", streamer=streamer)
    # A terminal takes drafts back: between saving its cursor and clearing what follows.
    printed = re.sub(r"\x1b7.*?\x1b8\x1b\[J", "", capsys.readouterr().out)
    assert text.strip() in printed


def test_an_iterator_streamer_in_a_thread(bundled, told):
    model, tokenizer = bundled
    call, text = told
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=model.generate, kwargs=call | {"sampler": "diffusion_forcing", "streamer": streamer})
    thread.start()
    assert "".join(streamer) == text
    thread.join()


def test_an_asynchronous_iterator_streamer(bundled, told):
    model, tokenizer = bundled
    call, text = told

    async def collect():
        streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
        thread = Thread(target=model.generate, kwargs=call | {"sampler": "diffusion_forcing", "streamer": streamer})
        thread.start()
        pieces = [piece async for piece in streamer]
        thread.join()
        return "".join(pieces)

    assert asyncio.run(collect()) == text
