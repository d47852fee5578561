"""What transformers' test classes ask of a model under test: its classes, a small config, and inputs."""

import copy

import torch
from transformers import AutoConfig, PreTrainedConfig

from support import FAMILIES

BATCH, WIDTH = 3, 7


def attention_layers(config: PreTrainedConfig, recurrences: int) -> int:
    """How often attention is computed in a forward pass."""
    if not hasattr(config, "n_layers_in_recurrent_block"):
        return config.num_hidden_layers * recurrences
    around = config.n_layers_in_prelude + config.n_layers_in_coda
    return around + config.n_layers_in_recurrent_block * recurrences


class ModelTester:
    """A small model of a family: the config of its fixture, with fewer recurrences.

    Args:
        family: a key of `FAMILIES`.
        classes: the base model, the language model, and the classifiers.
        changes: of the config.
    """

    is_training = True
    batch_size, seq_length, num_labels = BATCH, WIDTH, 3

    def __init__(self, family: str, classes: tuple[type, ...], **changes):
        self.causal_lm_class = classes[1]
        self.config = AutoConfig.from_pretrained(FAMILIES[family])
        self.config.pad_token_id = 0
        for name, value in changes.items():
            setattr(self.config, name, value)
        self.hidden_size = self.config.hidden_size
        # Of the outputs: a recurrence is a layer. The injected embedding and what the head reads come on top.
        recurrences = self.config.mean_recurrence
        self.expected_num_hidden_layers = recurrences + 2
        self.num_hidden_layers = attention_layers(self.config, recurrences)
        self.num_attention_heads = self.config.num_attention_heads
        self.vocab_size = self.config.vocab_size

    def get_config(self) -> PreTrainedConfig:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        ids = torch.randint(1, self.vocab_size, (BATCH, WIDTH))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
