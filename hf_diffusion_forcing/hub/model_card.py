"""The model card of an exported checkpoint."""

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from ..models.decoding_heads import DecodingHeads
from ..settings.presets import PRESET_SAMPLERS, PRESETS, preset_sampler
from .source_card import MARKER, SourceCard

TAGS = ["custom_generate", "recurrent-depth", "diffusion-forcing"]

BODY = """\
# {title}

A recurrent-depth language model of the family `{model_type}` with {parameters} parameters, whose core runs
{recurrences} times for every token. Its `generate()` works on many tokens at once, {method}, with the settings of
the preset `{preset}`{changes}.

## Use

Install the Python package `hf-diffusion-forcing`, which also installs a tested version of transformers. After importing
the package, the model loads with the package's own code, and no code of this repository is executed:

```python
import hf_diffusion_forcing
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
model = AutoModelForCausalLM.from_pretrained("{repo_id}")

inputs = tokenizer("Hello", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=32)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

Without the import, `trust_remote_code=True` lets two short files of this repository import the package:

```python
tokenizer = AutoTokenizer.from_pretrained("{repo_id}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{repo_id}", trust_remote_code=True)
ids = model.generate(**inputs, max_new_tokens=32)
```

To decode another recurrent-depth model by diffusion forcing in one call:

```python
ids = model.generate(**inputs, max_new_tokens=32, custom_generate="{repo_id}", trust_remote_code=True)
```

`generate()` takes the sampler's settings as keywords (`sampler_preset="quality"`, `wavefront=16`, `seed=0`, ...), which
override the stored ones. `sampler="autoregressive"` decodes one token at a time.

## Presets

{presets}

{heads}## Speed and accuracy

{measured}

{marker}
"""

METHODS = {
    "diffusion_forcing": "by diffusion forcing\n([arXiv 2510.14961](https://arxiv.org/abs/2510.14961))",
    "speculative_wavefront": "by a lossless wavefront\n(the text equals that of decoding one token at a time)",
}

MEASURED = "This checkpoint's own card, with its measurements, follows."
NOT_MEASURED = (
    "Neither was measured on this checkpoint when it was exported. To compare with autoregression on your own "
    "prompts:\n\n"
    '```bash\nhf-diffusion-forcing compare {repo_id} --prompt "..."\n```'
)


def preset_table(model_type: str) -> str:
    """The settings of every preset of a model family, as a Markdown table."""
    presets = PRESETS.get(model_type, PRESETS["huginn_raven"])
    settings = list(dict.fromkeys(name for values in presets.values() for name in values))
    rows = [["preset", "sampler", *(f"`{name}`" for name in settings)], ["---"] * (2 + len(settings))]
    for name, values in presets.items():
        rows.append([f"`{name}`", f"`{PRESET_SAMPLERS[name]}`", *(str(values.get(each, "")) for each in settings)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def heads_section(heads: DecodingHeads | None) -> str:
    """What a checkpoint's decoding heads are, as Markdown; empty without any."""
    if heads is None:
        return ""
    kinds = []
    if heads.readout_depths:
        kinds.append(f"a readout for drafts after {' and '.join(map(str, heads.readout_depths))} recurrences")
    if heads.extra_tokens:
        kinds.append(f"guesses of {heads.extra_tokens} tokens behind a draft (`draft_tokens={1 + heads.extra_tokens}`)")
    if heads.has_exit_probe:
        kinds.append('an exit probe (`exit_criterion="learned"`)')
    if heads.has_start:
        kinds.append("a start head, which predicts initial states (`learned_start=True`)")
    lines = [
        "## Decoding heads",
        "",
        "`decoding_heads.safetensors` has small maps that were fitted to text which the model wrote itself: "
        f"{', '.join(kinds)}. They load with the model. Lossless decoding writes the same text with and without them.",
    ]
    if (risk := heads.risk) is not None:
        lines += [
            "",
            f'With `exit_criterion="learned"`, at most {risk.epsilon:.1%} of tokens differ from {heads.fitted.depth} '
            f"recurrences ({risk.confidence:.0%} confidence, calibrated on {risk.tokens:,} tokens of held-out text).",
        ]
    return "\n".join([*lines, "", ""])


def model_card(
    model: PreTrainedModel,
    repo_id: str,
    preset: str,
    settings: dict,
    source: SourceCard,
    lossless: bool | None = None,
) -> ModelCard:
    """The card of an exported checkpoint.

    Args:
        model: the checkpoint.
        repo_id: the repository that the card's code loads; its last part is the heading.
        preset: the stored preset's name.
        settings: stored settings that override the preset's.
        source: the card of the source checkpoint; its metadata and text are kept.
        lossless: stored with the preset.
    """
    data = source.data
    data.library_name, data.pipeline_tag = "transformers", "text-generation"
    if source.repo_id not in (None, repo_id):
        data.base_model = source.repo_id
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    stored = ({"lossless": True} if lossless else {}) | settings
    changes = ", ".join(f"`{name}={value!r}`" for name, value in stored.items())
    body = BODY.format(
        title=repo_id.split("/")[-1],
        model_type=model.config.model_type,
        parameters=f"{model.num_parameters():,}",
        recurrences=model.config.mean_recurrence,
        preset=preset,
        method=METHODS[preset_sampler(preset, lossless)],
        changes=f" and {changes}" if changes else "",
        repo_id=repo_id,
        presets=preset_table(model.config.model_type),
        heads=heads_section(model.decoding_heads),
        measured=MEASURED if source.body else NOT_MEASURED.format(repo_id=repo_id),
        marker=MARKER,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n{source.body}".rstrip() + "\n")
