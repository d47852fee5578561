"""What a model does before the layers of a pass run: rotations by its positions, and the kernel of its attention."""

import torch
from transformers import PreTrainedConfig

from ..cache import Placement, RecordedAttention
from .attention_choice import attention_kernel
from .rotary import inverse_frequencies, rotations


class RotaryPositions:
    """Shared by models with rotary positions, whose verbs call `rotate(at)` before their layers run."""

    config: PreTrainedConfig

    def take_frequencies(self, config: PreTrainedConfig) -> None:
        """Keep the config's frequencies; to be called once, when the model is made."""
        self.inverse_frequencies = inverse_frequencies(config)
        # By device: a list would be copied for every placement, and a buffer would be cast with the weights.
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def rotate(self, at: Placement) -> None:
        """Fill in the rotations of the pass's queries and keys, and the kernel, unless an earlier verb has."""
        if at.rotary is None:
            if not isinstance(at.kernel, RecordedAttention):
                at.kernel = attention_kernel(self.config)
            device = at.positions.device
            frequencies = self._frequencies.get(device)
            if frequencies is None:
                frequencies = torch.tensor(self.inverse_frequencies, dtype=torch.float32, device=device)
                if not torch.compiler.is_compiling():  # what a graph makes must not outlive it
                    self._frequencies[device] = frequencies
            at.rotary = rotations(at.positions, frequencies)
