"""The inputs of the probes' `generate()` calls: a tiny model, its tokenizer, ids, processors, criteria, streamers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import tokenizers
import torch
import torch.distributed
from transformers import LogitsProcessor, PreTrainedTokenizerFast, StoppingCriteria

from ... import RavenConfig, RavenForCausalLM

IDS = torch.tensor([[3, 1, 4, 1, 5]])
NEGATIVE = torch.tensor([[23, 21, 24]])
BATCH = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [7, 7, 8, 8, 1], [1, 2, 3, 4, 6]])
EVEN, ODD = list(range(0, 61, 2)), list(range(1, 61, 2))

PROMPT = {"input_ids": IDS}
GREEDY = PROMPT | {"max_new_tokens": 8}
SAMPLED = GREEDY | {"do_sample": True}
ENDING = GREEDY | {"eos_token_id": EVEN}
"""Ends at its first even token, which is soon."""
REPEATING = GREEDY | {"sequence_bias": [[[5], 20.0]]}
"""Repeats a token of the prompt."""
DICT = GREEDY | {"return_dict_in_generate": True}
SCORED = DICT | {"output_scores": True}
NO_PROMPT = {"max_new_tokens": 8, "bos_token_id": 1}


class OtherParity(LogitsProcessor):
    """An even token after an odd one, an odd one after an even one."""

    def __call__(self, input_ids, scores):
        tokens = torch.arange(scores.shape[-1])
        return scores.masked_fill(tokens % 2 == input_ids[:, -1:] % 2, float("-inf"))


class AtLength8(StoppingCriteria):
    """Ends at 8 tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 8)


class ByScores(StoppingCriteria):
    """Ends when there are four scores."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), len(scores) == 4)


class Recorder:
    """A streamer that records its tokens."""

    def __init__(self):
        self.events: list = []

    def put(self, value):
        self.events += value.flatten().tolist()

    def end(self):
        self.events.append("end")


def tiny_model() -> RavenForCausalLM:
    """A model with random weights, whose drafts are guesses."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": 32, "n_heads": 2, "intermediate_size": 48, "block_size": 128}
    layers = {"n_layers_in_prelude": 1, "n_layers_in_recurrent_block": 2, "n_layers_in_coda": 1}
    return RavenForCausalLM(RavenConfig(**sizes, **layers, mean_recurrence=6, mean_backprop_depth=3)).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A token per letter, id 0 is "a"; the ids after "z" are extensions of "f", the prompt's last letter."""
    letters = [chr(ord("a") + place) for place in range(26)]
    vocabulary = letters + [f"f{letter}" for letter in letters] + [f"ff{letter}" for letter in letters[:9]]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({token: place for place, token in enumerate(vocabulary)}, unk_token="z")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="y", pad_token="z", padding_side="left")


def cache_of_another_text(model, settings: dict) -> dict:
    """Read the prompt's first columns from a cache that was made from other tokens."""
    kept = {name: settings[name] for name in ("sampler", "kv_sharing", "seed") if name in settings}
    other = model.generate(IDS[:, :4] + 20, **kept, max_new_tokens=1, return_dict_in_generate=True)
    return {"cache": other.cache}


@contextmanager
def one_process_group() -> Iterator[None]:
    """torch.distributed with only this process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
