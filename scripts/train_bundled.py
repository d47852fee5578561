"""Train the checkpoint that ships with the package, from scratch, on procedurally generated problems.

    python scripts/train_bundled.py --output runs/bundled --steps 3500
    python scripts/train_bundled.py --corpus python-source --output runs/source --steps 3000
    python scripts/train_bundled.py --family parcae --output runs/parcae --steps 1900 --mean-recurrence 8 \
        --backprop-depth 4 --decoding-depth 8 --mixed-precision no --dtype bfloat16
    python scripts/train_bundled.py --family nanbeige --output runs/two-loops --steps 1200 --layers 0/4/0 \
        --mean-recurrence 2 --decoding-depth 2 --worked-batch 8 --mental-tokens 0 --mixed-precision no

The second command trains a checkpoint of the same shape on the standard library of the running interpreter, whose text
has natural entropy. It is used for measurements. The third trains a Parcae on the problems by the same recipe, at the
family's own depths, on a CPU without bfloat16 (`tests/fixtures/parcae-problems`). The fourth trains four layers that
run twice, as Nanbeige's do, on worked problems alone.

Training is resumable: run the same command again after an interruption. It is also seeded: the data of a step depend on
the seed, the step and the longest mental chain so far. The learning rate warms up, stays constant, and decays linearly
over the last fifth of the steps, so `--steps` may be changed until the decay begins.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from muon import Float32Muon
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import hf_diffusion_forcing  # noqa: F401  (registers the families)
from hf_diffusion_forcing.evaluation.corpora import Corpus, ProblemCorpus, SourceCorpus

END, PAD = "<|endoftext|>", "<|pad|>"


def build_tokenizer(corpus: Corpus, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the training split. Every digit is a separate token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(corpus.words), behavior="isolated"),
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
    tokenizer.train_from_iterator(corpus.texts(), trainer)
    # Templates contain few words, so the merges may run out: reserved tokens then fill the vocabulary.
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=4096,
        chat_template=corpus.chat_template,
        clean_up_tokenization_spaces=False,
    )


def learning_rate_factor(step: int, steps: int, warmup: int = 100) -> float:
    decay_from = 0.8 * steps
    return min((step + 1) / warmup, 1.0, max(0.0, (steps - step) / (steps - decay_from)))


def model_config(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    layers: str,
    width: int,
    heads: int,
    intermediate: int,
    backprop_depth: int,
) -> PreTrainedConfig:
    """Return the config of a model of `family`; `layers` is prelude/core/coda."""
    prelude, core, coda = (int(n) for n in layers.split("/"))
    sizes = {
        "n_layers_in_prelude": prelude,
        "n_layers_in_recurrent_block": core,
        "n_layers_in_coda": coda,
        # Output projections start larger than for the final depth, because the depth grows during training.
        "mean_recurrence": 3,
        "mean_backprop_depth": backprop_depth,
    }
    if family == "nanbeige":
        sizes = {"num_hidden_layers": core, "num_key_value_heads": heads, "head_dim": width // heads}
    return AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        **sizes,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_optimizers(
    model: PreTrainedModel, learning_rate: float, mixed_precision: str
) -> tuple[torch.optim.Optimizer, ...]:
    """Use Muon for matrices and AdamW for the rest."""
    # Muon learns chains of three operations in a third of the steps of AdamW, at the same cost per step.
    embeddings = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim == 2 and p not in embeddings]
    others = [p for p in model.parameters() if p.ndim != 2 or p in embeddings]
    muon = partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw") if mixed_precision == "bf16" else Float32Muon
    return (
        muon(matrices, lr=learning_rate, weight_decay=0.05),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def save_trained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, dtype: str, decoding_depth: int, output: Path
) -> None:
    """Write the final checkpoint, which decodes at `decoding_depth`."""
    model = model.eval().to(getattr(torch, dtype))
    model.config.mean_recurrence = decoding_depth
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=160,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint and the training state.")] = Path(
        "runs/bundled"
    ),
    family: Annotated[
        Literal["huginn_raven", "parcae", "nanbeige"], typer.Option(help="Model type; nanbeige has a core alone.")
    ] = "huginn_raven",
    corpus_name: Annotated[Literal["problems", "python-source"], typer.Option("--corpus")] = "problems",
    steps: int = 3500,
    seed: int = 0,
    width: Annotated[int, typer.Option(help="Channels (n_embd).")] = 192,
    heads: int = 6,
    intermediate: int = 512,
    layers: Annotated[str, typer.Option(help="Prelude/core/coda blocks.")] = "1/2/1",
    vocab_size: int = 512,
    learning_rate: float = 3e-3,
    worked_batch: Annotated[
        int, typer.Option(help="Worked problems per step (every second step while chains grow).")
    ] = 4,
    mental_tokens: Annotated[
        int, typer.Option(help="Approximate tokens of mental problems per step; 0 for none.")
    ] = 800,
    source_batch: Annotated[int, typer.Option(help="Windows of 256 tokens of source per step.")] = 8,
    mean_recurrence: Annotated[int, typer.Option(help="Mean random depth after the ramp from 9.")] = 12,
    backprop_depth: int = 6,
    decoding_depth: Annotated[int, typer.Option(help="Recurrences of the final checkpoint when decoding.")] = 32,
    mixed_precision: Annotated[str, typer.Option(help="bf16, or no if the CPU has no fast bf16.")] = "bf16",
    dtype: Annotated[str, typer.Option(help="Dtype of the saved weights: float32 or bfloat16.")] = "float32",
    save_every: int = 500,
):
    """Train, save every `save_every` steps, and write the final checkpoint to OUTPUT."""
    set_seed(seed)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    corpus = (
        ProblemCorpus(seed, worked_batch, mental_tokens)
        if corpus_name == "problems"
        else SourceCorpus(seed, source_batch, width=256)
    )
    tokenizer = corpus.tokenizer = build_tokenizer(corpus, vocab_size)
    config = model_config(family, tokenizer, layers, width, heads, intermediate, backprop_depth)
    model = AutoModelForCausalLM.from_config(config).train()
    optimizers = make_optimizers(model, learning_rate, mixed_precision)
    model, *optimizers = accelerator.prepare(model, *optimizers)

    state = output / "state"
    step = 0
    if (state / "step.json").exists():
        accelerator.load_state(str(state))
        progress = json.loads((state / "step.json").read_text())
        step, corpus.progress = progress.pop("step"), progress
        accelerator.print(f"Resuming at step {step}.")

    shown: dict[str, str] = {}
    bar = tqdm(total=steps, initial=step, desc="training", disable=not accelerator.is_local_main_process)
    while step < steps:
        raw = accelerator.unwrap_model(model)
        raw.config.mean_recurrence = min(mean_recurrence, corpus.depth_ramp)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * learning_rate_factor(step, steps)

        for kind, batch in corpus.batches(step).items():
            ids, labels = (tensor.to(accelerator.device) for tensor in batch)
            num_steps = max(raw.sample_depth(), corpus.fewest_recurrences)
            logits = model(ids, num_steps=num_steps).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
            accelerator.backward(loss)
            corpus.observe(kind, logits, labels)
            shown[kind] = f"{loss.item():.3f}"
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(**shown, **{name: f"{value:.4g}" for name, value in corpus.progress.items()})
        if step % save_every == 0 or step == steps:
            accelerator.save_state(str(state))
            (state / "step.json").write_text(json.dumps({"step": step} | corpus.progress))
    bar.close()

    save_trained(accelerator.unwrap_model(model), tokenizer, dtype, decoding_depth, output)
    accelerator.print(f"Wrote {output}.")


if __name__ == "__main__":
    typer.run(main)
