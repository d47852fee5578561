"""Train the checkpoint that ships with the package, from nothing, on procedurally generated problems.

    python scripts/train_bundled.py --output runs/bundled --steps 3500

Resumable: run the same command again after an interruption. Seeded: the data of a step depend on the seed, the step
and the longest mental chain so far. The learning rate is warmup, constant, then a linear decay over the last fifth, so
`--steps` may be changed on resuming until the decay begins.
"""

import json
import math
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
from hf_diffusion_forcing.evaluation.problems import CHAT_TEMPLATE, MAX_CHAIN, Problem, problems

END, PAD = "<|endoftext|>", "<|pad|>"
PROMOTION_ACCURACY = 0.87
"""Moving average of accuracy on the longest mental chains at which they grow by one operation."""


def build_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training split; every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[^\s\d]+|\s+"), behavior="isolated"),
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
    # Templates have few words: where the merges run out, reserved tokens make up the vocabulary.
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def running_digits(problem: Problem) -> list[int]:
    """The last digit after the start and after every operation of a mental problem."""
    start, *operations = problem.key.split()[1:]
    digits = [int(start)]
    for operation in operations:
        sign, amount = operation[0], int(operation[1:])
        digits.append({"+": digits[-1] + amount, "-": digits[-1] - amount, "*": digits[-1] * amount}[sign] % 10)
    return digits


def encode(tokenizer, batch: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, int64 [batch, width], padded on the right.

    The answer and the end token are learned, and of a mental prompt one thing more: at each operand the readout is
    taught the digit so far. It is never part of a text, but it shows the latents what to hold; without it chains of
    two operations were still near chance after 450 steps.
    """
    prompts = tokenizer([p.prompt for p in batch])["input_ids"]
    answers = tokenizer([p.answer + END for p in batch])["input_ids"]
    digit_ids = [tokenizer(str(digit)).input_ids[0] for digit in range(10)]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(batch), width), tokenizer.pad_token_id)
    labels = torch.full((len(batch), width), -100)
    for row, (problem, prompt, answer) in enumerate(zip(batch, prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        if problem.kind == "mental":
            operands = [column for column, token in enumerate(prompt) if token in digit_ids]
            for column, digit in zip(operands, running_digits(problem), strict=True):
                labels[row, column + 1] = digit_ids[digit]  # the label of a position stands one to its right
    return ids, labels


def result_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of mental rows whose result is right: the third label from the end, before the full stop and the end."""
    place = (labels != -100).cumsum(-1)
    result = (place == place[:, -1:] - 2).int().argmax(-1)
    rows = torch.arange(len(labels))
    return (logits[rows, result - 1].argmax(-1) == labels[rows, result]).float().mean().item()


def learning_rate_factor(step: int, steps: int, warmup: int = 100) -> float:
    decay_from = 0.8 * steps
    return min((step + 1) / warmup, 1.0, max(0.0, (steps - step) / (steps - decay_from)))


def main(
    output: Annotated[Path, typer.Option(help="Where the checkpoint and the training state go.")] = Path(
        "runs/bundled"
    ),
    steps: int = 3500,
    seed: int = 0,
    width: Annotated[int, typer.Option(help="Channels (n_embd).")] = 192,
    heads: int = 6,
    intermediate: int = 512,
    layers: Annotated[str, typer.Option(help="Prelude/core/coda blocks.")] = "1/2/1",
    vocab_size: int = 512,
    learning_rate: float = 3e-3,
    worked_batch: Annotated[
        int, typer.Option(help="Worked problems in a step (while chains grow, in every second).")
    ] = 4,
    mental_tokens: Annotated[int, typer.Option(help="About how many tokens of mental problems a step has.")] = 800,
    mean_recurrence: Annotated[int, typer.Option(help="Mean random depth once the ramp from 9 is over.")] = 12,
    backprop_depth: int = 6,
    mixed_precision: Annotated[str, typer.Option(help="bf16, or no where the CPU has no fast bf16.")] = "bf16",
    save_every: int = 500,
):
    """Train, save every `save_every` steps, and write a ready checkpoint to OUTPUT at the end."""
    set_seed(seed)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    tokenizer = build_tokenizer(vocab_size, seed)
    prelude, core, coda = (int(n) for n in layers.split("/"))
    std = math.sqrt(2 / (5 * width))
    config = RavenConfig(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_heads=heads,
        intermediate_size=intermediate,
        n_layers_in_prelude=prelude,
        n_layers_in_recurrent_block=core,
        n_layers_in_coda=coda,
        mean_backprop_depth=backprop_depth,
        # Output projections start larger than for 32 recurrences: the depth grows while training.
        init_values={"std": std, "embedding": std, "out_proj": std / 4, "embed_scale": math.sqrt(width)},
        block_size=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = RavenForCausalLM(config).train()
    # Muon learns a chain of three in a third of the steps that AdamW takes, at the same cost a step.
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "wte" in name]
    optimizers = (
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    model, *optimizers = accelerator.prepare(model, *optimizers)

    state = output / "state"
    step, longest, mental_accuracy = 0, 2, 0.0
    if (state / "step.json").exists():
        accelerator.load_state(str(state))
        progress = json.loads((state / "step.json").read_text())
        step, longest, mental_accuracy = progress["step"], progress["longest"], progress["mental_accuracy"]
        accelerator.print(f"Resuming at step {step}.")

    shown: dict[str, str] = {}
    bar = tqdm(total=steps, initial=step, desc="training", disable=not accelerator.is_local_main_process)
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        rows = mental_tokens // (12 + 3 * longest)
        streams = {
            "worked": problems(rng.getrandbits(48), kind="worked"),
            "mental": problems(rng.getrandbits(48), kind="mental", lengths=(1, longest)),
            "longest": problems(rng.getrandbits(48), kind="mental", lengths=(longest, longest)),
        }
        batches = {
            # Chains first: they are learned one operation at a time, written-out steps all at once.
            "worked": [next(streams["worked"]) for _ in range(worked_batch if step % 2 or longest == MAX_CHAIN else 0)],
            "mental": [next(streams["longest" if row % 2 else "mental"]) for row in range(rows)],
        }
        raw = accelerator.unwrap_model(model)
        raw.config.mean_recurrence = min(mean_recurrence, 8 + longest // 2)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * learning_rate_factor(step, steps)

        for kind, batch in batches.items():
            if not batch:
                continue
            ids, labels = encode(tokenizer, batch)
            ids, labels = ids.to(accelerator.device), labels.to(accelerator.device)
            # A chain of n operations is never asked of fewer than n recurrences: the core would learn to hurry.
            num_steps = max(raw.sample_depth(), longest)
            logits = model(ids, num_steps=num_steps).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
            accelerator.backward(loss)
            shown[kind] = f"{loss.item():.3f}"
        mental_accuracy += 0.03 * (result_accuracy(logits[1::2], labels[1::2]) - mental_accuracy)
        if mental_accuracy > PROMOTION_ACCURACY and longest < MAX_CHAIN:
            longest, mental_accuracy = longest + 1, 0.5
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(**shown, chain=longest, mental_accuracy=f"{mental_accuracy:.2f}")
        if step % save_every == 0 or step == steps:
            accelerator.save_state(str(state))
            progress = {"step": step, "longest": longest, "mental_accuracy": mental_accuracy}
            (state / "step.json").write_text(json.dumps(progress))
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
