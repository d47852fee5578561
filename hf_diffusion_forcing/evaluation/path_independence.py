"""Measures how far a latent state is from its limit, for different starts."""

import torch

from ..hooks.latent_criteria import latent_difference
from ..randomness import row_seeds


@torch.no_grad()
def approaches(model, ids: torch.Tensor, position: int, steps: int, wrong_steps: int) -> dict[str, torch.Tensor]:
    """The distance of one position's state from its limit, by start.

    All earlier positions are final. The limit is the state after 200 recurrences from noise with the true token.

    Args:
        ids: int64 [1, length], a whole text.
        position: the position to measure; its own token is the input.
        steps: recurrences with the true token.
        wrong_steps: recurrences with a wrong token, for the start that has them.

    Returns:
        float32 [steps + 1] by start: ||s - s_end|| / ||s_end|| after 0, 1, ... recurrences with the true token.
    """
    cache = model.new_cache(model.config.mean_recurrence, "last", ids.shape[1])
    seeds = row_seeds(0, 1)
    logits = model(ids[:, :position], cache=cache, seeds=seeds, logits_to_keep=1).logits[0, -1]
    logits[ids[0, position]] = -torch.inf
    wrong_token = logits.argmax()[None, None]
    positions = torch.tensor([[position]])

    at = cache.place(positions, start=position)

    def refined(state: torch.Tensor, e: torch.Tensor, count: int) -> list[torch.Tensor]:
        states = [state]
        for _ in range(count):
            states.append(model.recur(states[-1], e, at, 0))
        return states

    e = model.embed(wrong_token, at)
    noise = model.initialize_state(e, positions, seeds)
    misled = refined(noise, e, wrong_steps)[-1]
    e = model.embed(ids[:, position : position + 1], at)
    end = refined(noise, e, 200)[-1]
    starts = {
        "noise": noise,
        "zeros": torch.zeros_like(noise),
        f"{wrong_steps} recurrences with a wrong token": misled,
    }
    return {
        name: torch.stack([latent_difference(end, state)[0, 0] for state in refined(start, e, steps)])
        for name, start in starts.items()
    }
