"""Exports a checkpoint as a folder, ready for the Hub, that decodes in parallel wherever it is loaded."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedTokenizerBase

from ..generation.mixin import RecurrentDepthGenerationMixin
from ..generation.samplers import SAMPLERS
from ..settings.generation_config import RecurrentDepthGenerationConfig, named_settings
from ..settings.presets import preset_sampler
from ..settings.sampler_config import SamplerConfig, plain
from ..version import __version__
from .model_card import model_card
from .source_card import SourceCard
from .staging import check_destination, staged

REPOSITORY = Path(__file__).parent / "repository"
"""Files that are copied into every exported folder."""


def export_checkpoint(
    model: RecurrentDepthGenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    out: str | os.PathLike,
    preset: str = "balanced",
    *,
    lossless: bool | None = None,
    sampler_config: SamplerConfig | dict[str, Any] | None = None,
    source: str | os.PathLike | None = None,
    repo_id: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write weights (safetensors), configs, tokenizer, model card and `custom_generate` into a new folder.

    The folder appears complete or not at all. The stored generation config gets the new sampler; the model itself does
    not change.

    Args:
        model: a model of one of this package's families.
        tokenizer: the model's tokenizer.
        out: the folder.
        preset: stored by name in the generation config.
        lossless: with the preset "auto", stored beside it.
        sampler_config: settings that override the preset's.
        source: folder or Hub id of the unchanged weights. Its model card is kept, with its measurements; without a
            source, the new card says that nothing was measured.
        repo_id: the Hub repository, for the code in the card; the folder's name when None.
        overwrite: replace an existing checkpoint.

    Returns:
        The folder's absolute path.

    Raises:
        TypeError: the model is not recurrent-depth, the tokenizer is not a tokenizer, or `sampler_config` is neither a
            dataclass nor a dict.
        ValueError: the preset is unknown or does not fit the model, settings do not fit, `repo_id` is invalid, or
            `out` exists and may not be replaced.
    """
    _check_types(model, tokenizer)
    if repo_id is not None:
        validate_repo_id(repo_id)
    settings = _checked_settings(model, preset, lossless, sampler_config)
    out = check_destination(out, overwrite)
    with staged(out, overwrite) as stage:
        card = SourceCard() if source is None else SourceCard.of(source)
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        _store_sampler(model, stage, preset, lossless, settings)
        # Point auto_map to our own config code: one the model was loaded with names files that are not in the folder.
        _rewrite(stage / "config.json", auto_map={"AutoConfig": "configuration_recurrent_depth.RecurrentDepthConfig"})
        # These only record how the tokenizer was loaded.
        _rewrite(stage / "tokenizer_config.json", drop=("is_local", "local_files_only"))
        shutil.copytree(REPOSITORY, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (stage / "custom_generate/requirements.txt").write_text(f"hf-diffusion-forcing>={__version__}\n")
        card.save_images(stage)
        model_card(model, repo_id or out.name, preset, settings, card, lossless).save(stage / "README.md")
    return out


def _check_types(model: Any, tokenizer: Any) -> None:
    """TypeError unless they are a recurrent-depth model and a tokenizer."""
    if not isinstance(model, RecurrentDepthGenerationMixin):
        raise TypeError(
            f"{type(model).__name__} is not a recurrent-depth model. (Unwrap a wrapped one: pass a PEFT model's "
            "merge_and_unload() or a compiled model's _orig_mod.)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer={tokenizer!r} is not a transformers tokenizer.")


def _checked_settings(
    model: RecurrentDepthGenerationMixin,
    preset: str,
    lossless: bool | None,
    sampler_config: SamplerConfig | dict[str, Any] | None,
) -> dict[str, Any]:
    """The settings that override the preset's, as JSON values; ValueError if the model cannot decode with them."""
    sampler, settings = named_settings(preset_sampler(preset, lossless), sampler_config)
    if SAMPLERS[sampler].needs_injected_embedding and not model.has_injected_embedding:
        raise ValueError(
            f"preset={preset!r} uses {sampler}, which needs an injected embedding; {type(model).__name__} has none: "
            "use preset='lossless'."
        )
    stored = RecurrentDepthGenerationConfig(
        sampler=sampler, sampler_preset=preset, lossless=lossless, sampler_config=settings
    )
    stored.resolve(model.config)
    return plain(settings)


def _store_sampler(
    model: RecurrentDepthGenerationMixin, folder: Path, preset: str, lossless: bool | None, settings: dict[str, Any]
) -> None:
    config = copy.deepcopy(model.generation_config)
    config.sampler, config.sampler_preset, config.lossless = preset_sampler(preset, lossless), preset, lossless
    config.sampler_config = settings or None
    config.save_pretrained(folder)


def _rewrite(path: Path, drop: tuple[str, ...] = (), **entries: Any) -> None:
    """Change entries of a JSON file."""
    stored = {name: value for name, value in json.loads(path.read_text("utf-8")).items() if name not in drop} | entries
    path.write_text(json.dumps(stored, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
