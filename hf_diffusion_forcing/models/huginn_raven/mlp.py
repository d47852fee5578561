"""The gated MLP of all layouts."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_huginn_raven import RavenConfig


class RavenMLP(nn.Module):
    """silu(gate) * up, then a projection; gate and up are one map."""

    def __init__(self, config: RavenConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)
