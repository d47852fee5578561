"""The adapter of the looped example."""

import torch

from hf_diffusion_forcing import RecurrentDepthAdapter


class LoopedAdapter(RecurrentDepthAdapter):
    layers = (0, 1, 0)
    mean_recurrence = 6

    def embed(self, input_ids, at, inputs_embeds=None):
        tokens = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return tokens + self.places(at.positions.clamp_min(0))

    def initialize_state(self, e, positions, seeds, scale=1.0):
        return torch.zeros_like(e)

    def recur(self, s, e, at, depth):
        x = self.inject(torch.cat((s, e), dim=-1))
        y = at.attend(0, *self.split_heads(self.norm_1(x)), at.slot(depth))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.last_norm(x + self.mlp(self.norm_2(x)))

    def decode(self, s, at, readout=0, logits_to_keep=0):
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.head(s[:, kept])
