"""Command line: python -m weights_converters diffusers --help."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor

from anyi2v.backbone.checkpoint import build, state, write
from anyi2v.backbone.config import BackboneConfig
from anyi2v.errors import AnyI2VError, InputError
from anyi2v.files import read_json
from weights_converters import diffusers_layout as layout
from weights_converters.keymap import Rule, convert


def diffusers(
    unet: Path,
    vae: Path,
    text: Path,
    schedule: Path,
    name: str,
    out: Path,
    motion: Path | None = None,
    vocab: Path | None = None,
    frames: int = BackboneConfig.frames,
    fps: int = BackboneConfig.fps,
) -> None:
    """Joins the folders of a diffusers pipeline into one checkpoint of ours, stored in float16.

    Example: python -m weights_converters diffusers --unet sd15/unet --motion adapter --vae sd15/vae
    --text sd15/text_encoder --schedule sd15/scheduler/scheduler_config.json --name sd15
    --out sd15.safetensors

    Args:
        unet: folder of a UNet2DConditionModel: config.json and one .safetensors file.
        vae: folder of an AutoencoderKL.
        text: folder of a CLIPTextModel.
        schedule: JSON file of a scheduler.
        name: what the backbone shall be called.
        out: the file to write.
        motion: folder of a MotionAdapter; without it the backbone makes images only.
        vocab: JSON file {"words": [...]} for a text tower with whole-word tokens.
        frames: length of a video if nobody asks for another.
        fps: frames per second of a video if nobody asks for another.
    """
    spatial = read_json(unet / "config.json")
    adapter = None if motion is None else layout.motion_config(read_json(motion / "config.json"), spatial)
    vae_config = layout.vae_config(read_json(vae / "config.json"))
    size = spatial["sample_size"] * vae_config.factor
    config = BackboneConfig(
        name=name,
        unet=layout.unet_config(spatial, adapter),
        vae=vae_config,
        text=layout.text_config(read_json(text / "config.json"), None if vocab is None else read_json(vocab)),
        schedule=layout.schedule_config(read_json(schedule)),
        height=size,
        width=size,
        frames=frames,
        fps=fps,
    )
    sources = [("unet.", unet, layout.UNET), ("vae.", vae, layout.VAE), ("text.", text, layout.TEXT)]
    if motion is not None:
        sources.append(("unet.", motion, layout.MOTION))
    pack(config, sources, out)


def pack(config: BackboneConfig, sources: list[tuple[str, Path, list[Rule]]], out: Path) -> None:
    """Converts folders of weights and writes them as one checkpoint in float16.

    Args:
        config: the backbone that they make up.
        sources: for each folder the prefix of its keys in our checkpoint, itself, and its rules.
        out: the file to write; its metadata will hold the SHA-256 of each source.
    """
    tensors: dict[str, Tensor] = {}
    rules: list[Rule] = []
    hashes = {}
    for prefix, folder, own in sources:
        path = weights_file(folder)
        with path.open("rb") as file:
            hashes[f"{folder.name}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
        # the file's name before each key keeps the sources apart, and stands in error messages
        tensors |= {f"{path}: {key}": tensor for key, tensor in load_file(path).items()}
        rules += [rule.within(f"{path}: ", prefix) for rule in own]
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in state(build(config)).items()}
    converted, report = convert(tensors, rules, shapes)
    metadata = {"sources": json.dumps(hashes), "converter": f"anyi2v {version('anyi2v')}"}
    write(converted, config, out, dtype=torch.float16, metadata=metadata)
    print(f"{out}: {len(converted)} tensors, {out.stat().st_size:,} bytes; dropped {len(report.dropped)}")


def weights_file(folder: Path) -> Path:
    """The one .safetensors file in `folder`; raises InputError if there is none or a choice."""
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder} must hold exactly one .safetensors file, but there are: {names}")
    return found[0]


def main() -> None:
    """Runs the command line; what a user can mend is one line and exit status 2."""
    app = tyro.extras.SubcommandApp()
    app.command(diffusers)
    try:
        app.cli(prog="python -m weights_converters")
    except AnyI2VError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
