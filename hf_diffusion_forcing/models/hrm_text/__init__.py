"""HRM-Text: two stacks of layers, run in turns (transformers' own `HrmTextForCausalLM`)."""

from .configuration_hrm_text import HrmTextConfig
from .modeling_hrm_text import HrmTextAdapter

__all__ = ["HrmTextAdapter", "HrmTextConfig"]
