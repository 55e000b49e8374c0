"""Inspection of a run, which is repeated with recording taps to draw its internals.

`recording` selects tensors and collects them during `animate(..., taps=recording)`; `write_inspection` draws them into
the run's folder and adds them to the run's page.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import inversion_pairs
from anyi2v.files import expanded, read_json
from anyi2v.hook_points import paper_layer
from anyi2v.images.media import write_image
from anyi2v.images.video import write_video
from anyi2v.job import Result
from anyi2v.method.alignment import feature_map
from anyi2v.method.boxes import job_crops
from anyi2v.method.config import Mask
from anyi2v.method.crops import paste, video_masks
from anyi2v.method.inversion import round_trip
from anyi2v.method.noise import stream
from anyi2v.method.objective import FeatureAlignment
from anyi2v.reports.feature_pictures import attention_map, colour_bar, colours, heat, value_range
from anyi2v.reports.folder import GALLERY, PAGE, RECORD, claimed, staged
from anyi2v.reports.page import page
from anyi2v.reports.plots import contact_sheet, magnification, mask_name, overlay_boxes, overlay_masks
from anyi2v.reports.previews import fit_preview
from anyi2v.reports.recording import SHOWN, Recording, Selection, layer_points

CELL = 112
"""Size of a frame's shorter side in the sheets, in pixels."""
ERROR_GAIN = 4
_MASKS: dict[Mask, str] = {
    "dynamic": "The mask of each frame is the cluster of the most similar positions (K-Means).",
    "static": "The mask of frame 1 is the cluster of the most similar positions (K-Means); it moves with the box.",
    "none": "Objects without a given mask are not segmented: the whole box is aligned.",
}
WAYS = ("condition", "autoencoder", "inversion and back")

Section = dict[str, Any]
"""Section of the gallery, see `reports.folder.GALLERY`."""


def write_inspection(
    folder: Path, backbone: Backbone, image: Float[Tensor, "3 h w"], result: Result, recording: Recording
) -> Path:
    """Draw a repeated run into `folder`/inspection and rewrite its report.html; return the page's path.

    Args:
        folder: folder of the run that was repeated.
        backbone: backbone of the run.
        image: condition image.
        result: result of the repetition.
        recording: taps of the repetition.
    """
    folder = expanded(folder).resolve()
    with claimed(folder), staged(folder) as new:
        inside = (new / GALLERY).parent
        inside.mkdir()
        same = _faithful(folder, inside, result)
        sections = [
            _features(inside, backbone, result, recording),
            _similarities(inside, backbone, result, recording),
            _trajectories(inside, result, recording.selection),
            _denoising(inside, backbone, recording),
            _reconstruction(inside, backbone, image, result),
        ]
        sections = [section for section in sections if section["pictures"]]
        sections[0]["text"] += " " + same
        (new / GALLERY).write_text(json.dumps({"sections": sections}, indent=1) + "\n", encoding="utf-8")
        (new / PAGE).write_text(page(folder, new / GALLERY), encoding="utf-8")
    return folder / PAGE


def _faithful(folder: Path, inside: Path, result: Result) -> str:
    """Describe whether the repetition gave the same video, compared by the bytes of the GIF."""
    again, (height, width) = inside / "again.gif", result.video.shape[-2:]
    write_video(again, result.video, fps=result.fps, enlarge=magnification(height, width))
    same = (folder / "video.gif").is_file() and again.read_bytes() == (folder / "video.gif").read_bytes()
    again.unlink()
    if same:
        return "The run was repeated for these pictures and gave the same video, byte for byte."
    pairs = zip(read_json(folder / RECORD)["losses"], result.losses, strict=False)
    gap = max((abs(a["loss"] - b.loss) / max(abs(a["loss"]), 1e-12) for a, b in pairs), default=0.0)
    return (
        "The run was repeated for these pictures, but its video differs through rounding, because of another machine, "
        f"number of threads or version. The losses differ by at most {100 * gap:.2g} %."
    )


def _features(inside: Path, backbone: Backbone, result: Result, recording: Recording) -> Section:
    """Draw one sheet per step, with layers as rows and frames as columns (Fig. 5 of the paper)."""
    section = _section(
        "Features",
        "What the network sees: each layer's features at each position, reduced to their first three principal "
        "components over all frames and shown as red, green and blue. Similar colours mean similar features, so an "
        "object that keeps its colour is recognised from frame to frame. In attention maps, positions of similar "
        "colour attend to the same places.",
    )
    shown = list(recording.selection.frames)
    for step, seen in sorted(recording.denoising.items()):
        rows = {"video": result.video[shown]}
        for layer in recording.selection.layers:
            for kind, feature in _kinds(layer, seen, backbone):
                rows[f"{kind} {layer}"] = colours(feature)[shown]
        _add(section, inside, f"features_step_{step:02}.png", _at(step, result), rows, _heads(shown))
    return section


def _kinds(layer: str, seen: Mapping[str, Tensor], backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Yield a layer's query, residual hidden and attention map, as far as recorded, with their names in the figure."""
    hidden, query, key = layer_points(layer)
    if query in seen:
        yield "query", feature_map(query, seen[query])
    if hidden in seen:
        yield "residual", feature_map(hidden, seen[hidden])
    if query in seen:
        heads = backbone.config.unet.heads_of(seen[query].shape[-1])
        yield "attention map", attention_map(seen[query][0], seen[key][0], heads)


def _similarities(inside: Path, backbone: Backbone, result: Result, recording: Recording) -> Section:
    """Draw one sheet per optimised step, with each object's similarity maps and masks (Fig. 6 of the paper)."""
    section = _section(
        "Similarities and masks",
        "Where the network finds each object in its box: the cosine similarity of the features at each position to "
        "those at the object's salient points in frame 1, from dark (lowest) to yellow (highest, see the bar), in the "
        f"last update of the latents before a step. {_MASKS[result.config.mask]}",
    )
    if not recording.optimisation:
        return section
    config, shown = result.config, list(recording.selection.frames)
    crops = job_crops(result.tracks, config, backbone.config.vae.factor)
    objective = FeatureAlignment(config, stream(result.seed, "pca"))
    within = paste(crops.valid.float(), crops) > 0
    for step, seen in sorted(recording.optimisation.items()):
        made = objective({name: feature_map(name, seen[name]) for name in config.align}, crops)
        maps = [paste(values, crops) for values in made.similarities]
        masks = video_masks(made.masks, crops, (result.tracks.height, result.tracks.width))
        rows = {"tracks": overlay_boxes(result.video, result.tracks)[shown]}
        sides = {}
        for o, name in enumerate(crops.names):
            for point, values in zip(config.align, maps, strict=True):
                row = f"{name}: similarity {paper_layer(point) or point}"
                rows[row] = heat(values[o], within[o])[shown]
                sides[row] = colour_bar(*value_range(values[o], within[o]), CELL)
            others = [torch.zeros_like(masks[o])] * o  # empty masks, so that the object has its own colour
            rows[f"{name}: {mask_name(config, result.tracks.objects[o])}"] = overlay_masks(
                result.video, [*others, masks[o]]
            )[shown]
        _add(section, inside, f"similarity_step_{step:02}.png", _at(step, result), rows, _heads(shown), sides=sides)
    return section


def _trajectories(inside: Path, result: Result, selection: Selection) -> Section:
    section = _section(
        "Trajectories", "The video with the requested boxes and paths; the path so far is thick, the rest thin."
    )
    if result.tracks.objects:
        shown = list(selection.frames)
        rows = {"video": overlay_boxes(result.video, result.tracks)[shown]}
        title = ("Requested boxes and paths", "The object should fill its box in every frame.")
        _add(section, inside, "trajectories.png", title, rows, _heads(shown), cell=2 * CELL)
    return section


def _denoising(inside: Path, backbone: Backbone, recording: Recording) -> Section:
    """Draw one sheet, with the latents after steps spread over the run as rows."""
    section = _section(
        "Denoising",
        "The latents after some steps, each cell in the average colour of its decoded pixels (by a linear map).",
    )
    if recording.latents:
        preview, shown = fit_preview(backbone.vae), list(recording.selection.frames)
        count, last = min(len(recording.latents), SHOWN), max(recording.latents)
        steps = [round(k * last / max(count - 1, 1)) for k in range(count)]
        rows = {f"after step {step}": preview(recording.latents[step][shown]) for step in steps}
        title = ("Latents", "The video emerges from noise, from top to bottom.")
        _add(section, inside, "denoising.png", title, rows, _heads(shown))
    return section


def _reconstruction(inside: Path, backbone: Backbone, image: Float[Tensor, "3 h w"], result: Result) -> Section:
    """Draw the condition after inversion to t_alpha and back, a bound on what the recorded features know of it."""
    config = result.config
    until, stride = config.inversion_timestep, config.inversion_stride
    section = _section(
        "Inversion and back",
        f"The condition through the autoencoder alone, and after DDIM inversion to timestep {until} and back without "
        f"guidance. Errors are absolute differences from the condition, amplified {ERROR_GAIN} times.",
    )
    if config.inversion != "ddim" or not result.features:
        return section
    text = backbone.encode_text([result.prompt]).float()
    with torch.no_grad():
        latent = backbone.vae.encode(2 * image[None].to(backbone.device) - 1)
        steps = inversion_pairs(backbone.config.schedule, until=until, stride=stride)
        network = Denoiser(backbone.unet, text, schedule=backbone.config.schedule, fps=result.fps).images()
        back = round_trip(network, latent[:, None], steps)
        decoded = [(backbone.vae.decode(z).float() / 2 + 0.5).clamp(0, 1).cpu()[0] for z in (latent, back[0])]
    error = [((x - image).abs() * ERROR_GAIN).clamp(0, 1) for x in decoded]
    rows = {"image": torch.stack([image, *decoded]), "error": torch.stack([torch.zeros_like(image), *error])}
    told = " and ".join(f"{_psnr(x, image):.1f} dB ({name})" for x, name in zip(decoded, WAYS[1:], strict=True))
    title = (f"Signal to noise: {told}", "The darker the errors, the more of the condition is kept.")
    _add(section, inside, "reconstruction.png", title, rows, WAYS, cell=2 * CELL)
    return section


def _psnr(x: Tensor, image: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels; infinite for equal images."""
    return -10 * math.log10(error) if (error := (x - image).square().mean().item()) else math.inf


def _section(title: str, text: str) -> Section:
    return {"title": title, "text": text, "pictures": []}


def _at(step: int, result: Result) -> tuple[str, str]:
    """Return the title and the caption of a sheet of a denoising step."""
    config = result.config
    injects = step < config.inject_steps and (config.inject_hidden or config.inject_query or config.share_kv)
    latents = "optimised" if any(loss.step == step for loss in result.losses) else "not optimised"
    condition = "is injected" if injects else "is not injected"
    steps = f"Step {step} of 0 to {config.steps - 1}"
    text = f"{steps}: the latents were {latents} before it, the condition {condition} in it."
    return f"Step {step}", text


def _add(
    section: Section,
    inside: Path,
    file: str,
    title: tuple[str, str],
    rows: Mapping[str, Tensor],
    heads: Sequence[str],
    *,
    cell: int = CELL,
    sides: Mapping[str, Image.Image] | None = None,
) -> None:
    """Write a sheet and add it to the section with its title and caption."""
    write_image(inside / file, contact_sheet(rows, heads=heads, cell=cell, sides=sides))
    section["pictures"].append({"title": title[0], "text": title[1], "file": file})


def _heads(frames: Sequence[int]) -> list[str]:
    return [str(number + 1) for number in frames]
