"""`enable_recurrent_depth`: models of other classes, already in memory."""

import pytest
import torch
from torch import nn

from hf_diffusion_forcing import RavenForCausalLM, RecurrentDepthAdapter, enable_recurrent_depth
from support import left_pad, new_tokens, tiny_config
from support.looped_adapter import LoopedAdapter
from support.looped_model import LoopedConfig, LoopedLM

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]


def looped():
    torch.manual_seed(0)
    model = LoopedLM(LoopedConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return model


@torch.no_grad()
def test_the_adapted_model_computes_what_its_class_does():
    plain, adapted = looped(), enable_recurrent_depth(looped(), LoopedAdapter)
    ids = torch.tensor(ROWS[2:])
    for use_cache in (True, False):
        torch.testing.assert_close(adapted(ids, use_cache=use_cache).logits, plain(ids), atol=1e-4, rtol=0)
    assert isinstance(adapted, LoopedLM) and adapted.num_parameters() == plain.num_parameters()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": "autoregressive"},
        {"sampler": "speculative_wavefront", "draft_depth": 1},
        {"sampler": "adaptive", "exit_threshold": 0.0, "kv_sharing": "none"},
        {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 6, "kv_sharing": "none"},
    ],
)
@torch.no_grad()
def test_every_sampler_gives_its_greedy_text(settings):
    plain, adapted = looped(), enable_recurrent_depth(looped(), LoopedAdapter)
    texts = new_tokens(adapted.generate(**left_pad(ROWS), max_new_tokens=12, **settings), 7)
    for row, text in zip(ROWS, texts, strict=True):
        ids = torch.tensor([row])
        for _ in range(12):
            ids = torch.cat((ids, plain(ids)[:, -1:].argmax(-1)), dim=1)
        assert text == ids[0, len(row) :].tolist()


def test_diffusion_forcing_at_its_defaults():
    adapted = enable_recurrent_depth(looped(), LoopedAdapter)
    output = adapted.generate(
        **left_pad(ROWS), sampler="diffusion_forcing", max_new_tokens=12, return_dict_in_generate=True
    )
    assert output.sequences.shape == (3, 19) and output.stats.core_passes <= 6 * 12


def test_it_trains():
    model = enable_recurrent_depth(looped(), LoopedAdapter).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, losses = torch.tensor(ROWS[2:]), []
    for _ in range(20):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


@torch.no_grad()
def test_what_it_saves_loads_as_before(tmp_path):
    adapted = enable_recurrent_depth(looped(), LoopedAdapter)
    adapted.save_pretrained(tmp_path)
    loaded = LoopedLM.from_pretrained(tmp_path)
    ids = torch.tensor(ROWS[:1])
    assert torch.equal(loaded(ids), looped()(ids))
    again = enable_recurrent_depth(loaded, LoopedAdapter)
    assert again.generate(ids, max_new_tokens=4).tolist() == adapted.generate(ids, max_new_tokens=4).tolist()


def test_models_of_this_package_are_returned_as_they_are():
    model = RavenForCausalLM(tiny_config())
    assert enable_recurrent_depth(model) is model and type(model) is RavenForCausalLM


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="LoopedLM is no model of this package"):
        enable_recurrent_depth(looped())
    with pytest.raises(TypeError, match="needs a PreTrainedModel"):
        enable_recurrent_depth(nn.Linear(2, 2), LoopedAdapter)
    with pytest.raises(TypeError, match="must be a subclass of RecurrentDepthAdapter"):
        enable_recurrent_depth(looped(), LoopedConfig)

    class Half(RecurrentDepthAdapter):
        def embed(self, input_ids, at):
            return self.tokens(input_ids)

    with pytest.raises(TypeError, match="Half lacks decode, initialize_state, recur, layers, mean_recurrence"):
        enable_recurrent_depth(looped(), Half)
    model = looped()
    model.config.max_position_embeddings = None
    with pytest.raises(ValueError, match="max_position_embeddings"):
        enable_recurrent_depth(model, LoopedAdapter)
