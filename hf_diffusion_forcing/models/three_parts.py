"""What models with a prelude, a core and a coda of their own share: the size of a cache, and the head."""

from torch import nn
from transformers import PreTrainedConfig

from ..cache import RecurrentDepthCache
from .base_model import RecurrentDepthModel
from .causal_lm import HeadedForCausalLM


class ThreePartModel(RecurrentDepthModel):
    """The parts without a head. The config counts the layers of each."""

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        config = self.config
        return RecurrentDepthCache(
            config.n_layers_in_prelude,
            config.n_layers_in_recurrent_block,
            config.n_layers_in_coda,
            num_steps,
            kv_sharing,
            capacity,
        )


class ThreePartLanguageModel(HeadedForCausalLM):
    """A `ThreePartModel` named `transformer` with a head, which may be its token embedding `wte`.

    A family sets `model_class`.
    """

    model_class: type[ThreePartModel]
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.transformer = self.model_class(config)
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value
