"""What this package needs of transformers and torch beyond their documented interfaces, and where versions differ.

`names.NAMES` says which names were read, in which versions, and why they are needed: the list to go through when a new
version of transformers comes out. `missing()` checks it against the installed versions. Other modules reach these names
through this package and are written once, for the newest version:

- `private.py`: undocumented functions, attributes and modules;
- `continuous_batching.py`: what transformers' continuous batching answers with;
- `serving.py`: the parts of `transformers serve`, imported only where a server is started;
- `cache_name.py`: `past_key_values`, which 5.24 renames to `cache`.
"""

from .cache_name import CACHE, NEW_NAME, OLD_NAME, RENAMED, CacheGenerationMixin, CacheOutput, takes_cache
from .names import NAMES, VERSIONS, Name, installed, missing
from .private import (
    ROPE_INIT_FUNCTIONS,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
    HrmTextAttention,
    WeightRenaming,
    attn_implementation,
    find_file,
    half_weight_linear,
    has_forward_hooks,
    has_hooks_of_its_own,
    has_matrix_instructions,
    initialization,
    is_from_model_config,
    mask_length,
    pack_half_weight,
    pack_weight,
    packed_linear,
    pad_token_id,
    prefix_constraint,
    register_checkpoint_conversion_mapping,
    times_written,
    with_own_code,
)

__all__ = [
    "CACHE",
    "NAMES",
    "NEW_NAME",
    "OLD_NAME",
    "RENAMED",
    "ROPE_INIT_FUNCTIONS",
    "VERSIONS",
    "CacheGenerationMixin",
    "CacheOutput",
    "GenericForSequenceClassification",
    "GenericForTokenClassification",
    "GradientCheckpointingLayer",
    "HrmTextAttention",
    "Name",
    "WeightRenaming",
    "attn_implementation",
    "find_file",
    "half_weight_linear",
    "has_forward_hooks",
    "has_hooks_of_its_own",
    "has_matrix_instructions",
    "initialization",
    "installed",
    "is_from_model_config",
    "mask_length",
    "missing",
    "pack_half_weight",
    "pack_weight",
    "packed_linear",
    "pad_token_id",
    "prefix_constraint",
    "register_checkpoint_conversion_mapping",
    "takes_cache",
    "times_written",
    "with_own_code",
]
