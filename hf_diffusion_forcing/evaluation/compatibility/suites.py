"""Which of transformers' own tests of models do not apply to recurrent-depth models, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NotApplicable:
    """A test, or several, that tests/transformers_suite skips.

    Attributes:
        test: its name in transformers' `ModelTesterMixin`; `*` stands for anything.
        reason: what happens instead, for the reader of the page.
        families: fixtures of the families it does not apply to; empty for all.
    """

    test: str
    reason: str
    families: tuple[str, ...] = ()


NOT_APPLICABLE = (
    NotApplicable(
        "test_generation_tester_mixin_inheritance",
        "asks for `GenerationTesterMixin`, which transformers' source distribution lacks",
    ),
    NotApplicable(
        "test_num_layers_is_small",
        "limits the sizes of transformers' own test models; here every recurrence counts as a layer",
    ),
    NotApplicable(
        "test_eager_matches_sdpa_inference_*_output_attentions",
        'passes `output_attentions=True` with `"sdpa"`, which is refused: attention weights need `"eager"`',
    ),
    NotApplicable(
        "test_model_rope_scaling_from_config_*",
        "reads texts longer than `max_position_embeddings`, which are refused, and scales RoPE by types other than "
        "`default` and `llama3`, which are refused, too",
    ),
    NotApplicable(
        "test_load_with_mismatched_shapes",
        "expects a small `vocab_size` not to fit the embedding, which has `padded_vocab_size` rows",
        families=("huginn", "llama", "olmo", "parcae"),
    ),
    NotApplicable(
        "test_inputs_embeds*",
        "passes embeddings in place of ids, which are refused: the value embeddings need the ids",
        families=("parcae",),
    ),
)
