"""From the logits of a wave to its next tokens."""

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ..randomness import keyed_gumbel


class KeyedGumbelProcessor(LogitsProcessor):
    """Adds position-keyed Gumbel noise, so the argmax samples the softmax of the processed logits.

    As the last processor it turns transformers' greedy loop into sampling whose noise is the same for every sampler.

    Args:
        seeds: int64 [batch].
        padding: int64 [batch], left padding of each row.
    """

    def __init__(self, seeds: torch.Tensor, padding: torch.Tensor):
        self.seeds, self.padding = seeds, padding

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        positions = input_ids.shape[1] - self.padding
        return scores.float() + keyed_gumbel(self.seeds, positions[:, None], scores.shape[-1])[:, 0]


def choose_tokens(
    logits: torch.Tensor,
    prefixes: list[list[int]],
    tokens: list[list[int]],
    logits_processor: LogitsProcessorList,
    seeds: torch.Tensor | None,
    positions: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """The token each position of a wave predicts, int64 [batch, width].

    Args:
        logits: [batch, width, vocabulary].
        prefixes: per row, all ids before its wave (left padding included).
        tokens: per row, the ids in its wave: column j of the row predicts what follows prefix + tokens[: j + 1].
        logits_processor: each position is processed with its own prefix.
        seeds: int64 [batch] to sample with keyed Gumbel noise; None for greedy.
        positions: int64 [batch, width], absolute.
        device: of the ids that `generate()` was given, where transformers made the processors.
    """
    if logits_processor:
        batch = len(tokens)
        logits = logits.to(device, torch.float32, copy=True)
        for row, (prefix, wave) in enumerate(zip(prefixes, tokens, strict=True)):
            ids = torch.tensor([prefix + wave], device=device).expand(batch, -1)
            for column in range(len(wave)):
                # As a batch of equal rows: some processors hold a tensor per row, or ask for the row's number.
                end = len(prefix) + column + 1
                scores = logits_processor(ids[:, :end], logits[row, column].expand(batch, -1))
                logits[row, column] = scores[row]
        logits = logits.to(positions.device)
    if seeds is not None:
        logits = logits.float() + keyed_gumbel(seeds, positions + 1, logits.shape[-1])
    return logits.argmax(-1)
