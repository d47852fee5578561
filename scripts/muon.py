"""Muon in float32, for processors without bfloat16 instructions."""

from collections import defaultdict
from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the Newton-Schulz iteration, as in `torch.optim.Muon`."""


class Float32Muon(torch.optim.Optimizer):
    """`torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, orthogonalising matrices of one shape together in float32.

    torch's own computes in bfloat16. Where the processor emulates that, it takes twice as long as the rest of a
    training step of the small models here.

    Args:
        params: matrices.
        lr, weight_decay, momentum: as in `torch.optim.Muon`; the momentum is Nesterov's.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """Update the matrices that have gradients."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    shapes[param.shape].append(param)
            for shape, params in shapes.items():
                updates = orthogonalize(torch.stack([self._nesterov(param, group["momentum"]) for param in params]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.type_as(param), alpha=rate)

    def _nesterov(self, param: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param.grad)
        buffer = state["momentum_buffer"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(buffer, momentum)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrices with singular values near 1, float32 [n, out, in], by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).float()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
