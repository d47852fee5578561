"""A looped language model as somebody might write it who has never heard of this package."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class LoopedConfig(PreTrainedConfig):
    model_type = "looped-example"
    vocab_size: int = 61
    hidden_size: int = 32
    num_heads: int = 4
    loops: int = 6
    max_position_embeddings: int = 64


class LoopedLM(PreTrainedModel):
    config_class = LoopedConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.places = nn.Embedding(config.max_position_embeddings, width)
        self.inject = nn.Linear(2 * width, width)
        self.norm_1, self.norm_2, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.tokens

    def split_heads(self, x):
        """query, key and value, [batch, heads, width, head_dim] each."""
        return self.qkv(x).unflatten(-1, (3, self.config.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, input_ids):
        e = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        s = torch.zeros_like(e)
        for _ in range(self.config.loops):
            x = self.inject(torch.cat((s, e), dim=-1))
            y = F.scaled_dot_product_attention(*self.split_heads(self.norm_1(x)), is_causal=True)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            s = self.last_norm(x + self.mlp(self.norm_2(x)))
        return self.head(s)
