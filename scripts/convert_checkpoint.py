"""Write the weights of a checkpoint that was published as a pickle as safetensors.

    python scripts/convert_checkpoint.py SandyResearch/parcae-140m checkpoints/parcae-140m
    python scripts/convert_checkpoint.py checkpoints/parcae-140m

Without OUTPUT the safetensors file is written beside the pickle, which stays. Names, shapes and dtypes do not change.
The pickle is read by torch's weights_only loader, which executes nothing.
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from tqdm import tqdm

from hf_diffusion_forcing.files import whole_file
from hf_diffusion_forcing.models.pickled import PICKLED, read_pickled


def of_its_own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without a second name of the same memory, such as a tied head, each contiguous."""
    kept, seen = {}, set()
    for name, tensor in tqdm(sorted(tensors.items()), desc="tensors"):
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor.contiguous().clone()
    return kept


def main(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    output: Annotated[Path | None, typer.Argument(help="Folder to write; the checkpoint's own by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing safetensors file.")] = False,
):
    """Write CHECKPOINT's weights as model.safetensors."""
    if output is None and not Path(checkpoint).is_dir():
        sys.exit(f"{checkpoint} is no folder: name an OUTPUT folder to convert a checkpoint of the Hub.")
    target = (output or Path(checkpoint)) / "model.safetensors"
    if target.exists() and not overwrite:
        sys.exit(f"{target} exists: pass --overwrite to replace it.")
    source = Path(checkpoint if Path(checkpoint).is_dir() else snapshot_download(checkpoint))
    file = next((source / name for name in PICKLED if (source / name).exists()), None)
    if file is None:
        sys.exit(f"{source} has none of {', '.join(PICKLED)}: there is nothing to convert.")
    try:
        tensors = of_its_own(read_pickled(file))
    except ValueError as error:
        sys.exit(str(error))
    target.parent.mkdir(parents=True, exist_ok=True)
    for other in source.iterdir():
        if output is not None and other.is_file() and other.name not in PICKLED and other.suffix != ".safetensors":
            shutil.copyfile(other, output / other.name)
    with whole_file(target) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    print(f"Wrote {target}: {len(tensors)} tensors, {sum(t.nbytes for t in tensors.values()) / 1e6:.1f} MB.")


if __name__ == "__main__":
    typer.run(main)
