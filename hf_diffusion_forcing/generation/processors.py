"""What a logits processor depends on, which decides how a wave may call it."""

import copy
from typing import Any, Literal

import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
)

SCORES_ONLY = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TopHLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    SuppressTokensLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
)
"""Processors that read only the scores, so one call covers a whole wave. Subclasses do not count."""

PREFIX_ONLY = (
    # Lengths and penalties, fixed when the processor is made.
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    ExponentialDecayLengthPenalty,
    SuppressTokensAtBeginLogitsProcessor,
    # What the prefix contains.
    RepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    NoBadWordsLogitsProcessor,
    # What the prompt contains: a tensor per row, never written to.
    EncoderRepetitionPenaltyLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    # By transformers' documentation, a function of the row's number and the prefix.
    PrefixConstrainedLogitsProcessor,
    # Seeds its generator from the prefix in every call.
    WatermarkLogitsProcessor,
)
"""transformers' processors that depend on the prefix and the scores, but on no earlier call. They may therefore see
drafts, in any order. Subclasses do not count: they may keep a state."""

Kind = Literal["scores", "prefix", "calls"]


def kind_of(processor: LogitsProcessor) -> Kind:
    """What a processor depends on besides its scores: nothing, the prefix, or (possibly) its earlier calls.

    A processor that transformers does not have declares itself with `reads_only_prefix = True`.
    """
    if type(processor) in SCORES_ONLY:
        return "scores"
    if type(processor) in PREFIX_ONLY or getattr(processor, "reads_only_prefix", False):
        return "prefix"
    return "calls"


def one_per_row(processor: LogitsProcessor, rows: int) -> list[LogitsProcessor]:
    """The processor for each row of a batch: itself for a single row, otherwise copies, so that rows share no state.

    Modules that the processor holds as attributes are shared between the copies.

    Raises:
        ValueError: the processor cannot be copied.
    """
    if rows == 1:
        return [processor]
    attributes = getattr(processor, "__dict__", {}).values()

    def copied() -> Any:
        return copy.deepcopy(processor, {id(each): each for each in attributes if isinstance(each, torch.nn.Module)})

    try:
        copies = [copied() for _ in range(rows)]
    except Exception as error:  # __deepcopy__ and __reduce_ex__ may raise anything
        raise ValueError(_not_copied(processor, rows, f"copying it failed: {error}")) from error
    if copies[0] is processor and not hasattr(type(processor), "__deepcopy__"):
        raise ValueError(_not_copied(processor, rows, "a function cannot be copied"))
    return copies


def _not_copied(processor: LogitsProcessor, rows: int, reason: str) -> str:
    name = getattr(processor, "__name__", type(processor).__name__)
    return (
        f"logits_processor {name} may keep a state, so each of the {rows} rows needs its own copy, but {reason}. "
        "Decode rows one by one, give its class a __deepcopy__, or set reads_only_prefix = True on it if it depends "
        "on nothing but input_ids and scores."
    )
