"""Train the checkpoint that ships with the package, from nothing, on procedurally generated problems.

    python scripts/train_bundled.py --output runs/bundled --steps 3800

Resumable: run the same command again after an interruption. Seeded: the data of step n depend on the seed and n alone.
The learning rate is warmup, constant, then a linear decay over the last fifth, so `--steps` may be changed on resuming
until the decay begins.
"""

import json
import random
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hf_diffusion_forcing import RavenConfig, RavenForCausalLM
from hf_diffusion_forcing.evaluation.problems import MAX_CHAIN, Problem, problems

END, PAD = "<|endoftext|>", "<|pad|>"
PROMOTION_ACCURACY = 0.85
"""Moving average of mental accuracy at which the curriculum adds an operation to the longest chain."""


def build_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training split. A digit is a token of its own, with the space before it if there is one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d| ?[^\s\d]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = problems(seed)
    tokenizer.train_from_iterator((p.prompt + p.answer for p, _ in zip(stream, range(20_000), strict=False)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


class Curriculum:
    """Longest mental chain so far, raised when the moving average of accuracy allows. Saved with the training state."""

    def __init__(self):
        self.longest, self.accuracy = 1, 0.0

    def observe(self, accuracy: float) -> None:
        self.accuracy += 0.04 * (accuracy - self.accuracy)
        if self.accuracy > PROMOTION_ACCURACY and self.longest < MAX_CHAIN:
            self.longest += 1
            self.accuracy -= 0.1

    def length(self, rng: random.Random) -> int:
        """Half of the chains are as long as allowed, the others uniform."""
        return self.longest if rng.random() < 0.5 else rng.randint(1, self.longest)

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def encode(tokenizer, batch: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, int64 [batch, width]; only the answer and the end token are learned. Padded on the right."""
    prompts = tokenizer([p.prompt for p in batch])["input_ids"]
    answers = tokenizer([p.answer + END for p in batch])["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def first_token_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose first answer token is right: for mental problems, the result."""
    first = (labels != -100).int().argmax(-1)
    rows = torch.arange(len(labels))
    return (logits[rows, first - 1].argmax(-1) == labels[rows, first]).float().mean().item()


def learning_rate_factor(step: int, steps: int, warmup: int = 100) -> float:
    decay_from = 0.8 * steps
    return min((step + 1) / warmup, 1.0, max(0.0, (steps - step) / (steps - decay_from)))


def main(
    output: Annotated[Path, typer.Option(help="Where the checkpoint and the training state go.")] = Path(
        "runs/bundled"
    ),
    steps: int = 3800,
    seed: int = 0,
    width: Annotated[int, typer.Option(help="Channels (n_embd).")] = 192,
    heads: int = 6,
    intermediate: int = 512,
    layers: Annotated[str, typer.Option(help="Prelude/core/coda blocks.")] = "1/2/1",
    vocab_size: int = 512,
    learning_rate: float = 2e-3,
    worked_batch: int = 8,
    mental_tokens: Annotated[
        int, typer.Option(help="About how many prompt tokens of mental problems a step has.")
    ] = 1500,
    mean_recurrence: Annotated[int, typer.Option(help="Mean random depth once the ramp from 4 is over.")] = 10,
    backprop_depth: int = 5,
    mixed_precision: Annotated[str, typer.Option(help="bf16, or no where the CPU has no fast bf16.")] = "bf16",
    save_every: int = 200,
):
    """Train, save every `save_every` steps, and write a ready checkpoint to OUTPUT at the end."""
    set_seed(seed)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    tokenizer = build_tokenizer(vocab_size, seed)
    prelude, core, coda = (int(n) for n in layers.split("/"))
    config = RavenConfig(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_heads=heads,
        intermediate_size=intermediate,
        n_layers_in_prelude=prelude,
        n_layers_in_recurrent_block=core,
        n_layers_in_coda=coda,
        mean_backprop_depth=backprop_depth,
        block_size=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = RavenForCausalLM(config).train()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )
    curriculum = Curriculum()
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(curriculum)

    state = output / "state"
    step = 0
    if (state / "step.json").exists():
        accelerator.load_state(str(state))
        step = json.loads((state / "step.json").read_text())["step"]
        accelerator.print(f"Resuming at step {step}.")

    bar = tqdm(total=steps, initial=step, desc="training", disable=not accelerator.is_local_main_process)
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        worked = problems(rng.getrandbits(48), kind="worked")
        batches = {"worked": [next(worked) for _ in range(worked_batch)], "mental": []}
        for _ in range(mental_tokens // (10 + 2 * curriculum.longest)):
            length = curriculum.length(rng)
            batches["mental"].append(next(problems(rng.getrandbits(48), kind="mental", lengths=(length, length))))
        raw = accelerator.unwrap_model(model)
        raw.config.mean_recurrence = min(mean_recurrence, 4 + step // 300)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps)

        shown = {}
        for kind, batch in batches.items():
            ids, labels = encode(tokenizer, batch)
            ids, labels = ids.to(accelerator.device), labels.to(accelerator.device)
            logits = model(ids).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
            # Of a mental answer's three tokens only the digit says something: count it like a token of a worked one.
            accelerator.backward(3 * loss if kind == "mental" else loss)
            shown[kind] = f"{loss.item():.3f}"
        curriculum.observe(first_token_accuracy(logits, labels))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(**shown, chain=curriculum.longest, mental_accuracy=f"{curriculum.accuracy:.2f}")
        if step % save_every == 0 or step == steps:
            accelerator.save_state(str(state))
            (state / "step.json").write_text(json.dumps({"step": step}))
    bar.close()

    model = accelerator.unwrap_model(model).eval()
    model.config.mean_recurrence = 32
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=160,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    accelerator.print(f"Wrote {output}.")


if __name__ == "__main__":
    typer.run(main)
