"""Figure in docs/conditions.md: `python -m benchmarks.conditions [docs/conditions.png]`. Needs the extra mesh."""

import sys
import tempfile
from pathlib import Path

import torch
import trimesh
from matplotlib.figure import Figure
from torch import Tensor

import anyi2v
from anyi2v.files import atomic
from anyi2v.images.conditions import Layer, Look, edges, load_condition, render
from anyi2v.images.fit import fit_image
from anyi2v.images.media import load_placed, write_image
from anyi2v.images.raster import Camera
from anyi2v.reports.plots import draw_tracks, overlay_boxes
from anyi2v.tracks import save_tracks

ABOVE = Camera(20, 50, 4.2)
"""View in which a ring is recognisable as one, with space around it."""


def make_files(folder: Path) -> None:
    """Write a mesh, a point cloud sampled on it, a wide picture with tracks, and a mask of its right half."""
    ring = trimesh.creation.torus(0.7, 0.3, major_sections=240, minor_sections=120)
    ring.export(folder / "ring.glb")
    trimesh.PointCloud(ring.sample(4000, seed=0)).export(folder / "ring.ply")
    photo = render(folder / "ring.glb", 384, 192, Look(camera=Camera(30, 15), up="z", background=(0.80, 0.66, 0.45)))
    write_image(folder / "photo.png", photo)
    boxes = ((97.0, 58.0, 289.0, 150.0), (7.0, 58.0, 199.0, 150.0))
    save_tracks(folder / "tracks.json", anyi2v.Tracks(384, 192, (anyi2v.Track("ring", boxes),)))
    write_image(folder / "right.png", (torch.arange(384) >= 192).float().expand(3, 192, 384))


def pictures(folder: Path) -> dict[str, Tensor]:
    """Return the pictures to show, by title."""
    photo, mesh = Layer(folder / "photo.png"), Layer(folder / "ring.glb")
    found = {"an image with a track": draw_tracks(*_fitted(folder, 384, 192, "crop"))}
    for mode in ("crop", "pad", "stretch"):
        found[f"--fit {mode}"] = draw_tracks(*_fitted(folder, 256, 256, mode))
    for style in ("shaded", "depth", "normal"):
        found[f"a mesh, --render {style}"] = load_condition([mesh], 256, 256, look=Look(style, ABOVE, "z"))[0]
    found["a cloud of points"] = render(folder / "ring.ply", 256, 256, Look("shaded", ABOVE, "z"))
    found["--extract edges"] = load_condition([photo], 256, 256, extract="edges")[0]
    write_image(folder / "edges.png", edges(anyi2v.load_image(folder / "photo.png")))
    layers = [photo, Layer(folder / "edges.png", folder / "right.png")]
    found["--layer photo, --layer edges:mask"] = load_condition(layers, 256, 256)[0]
    return found | _animated(mesh)


def _fitted(folder: Path, width: int, height: int, mode: str) -> tuple[Tensor, anyi2v.Tracks]:
    image, fit = fit_image(anyi2v.load_image(folder / "photo.png"), width, height, mode)  # pyright: ignore[reportArgumentType]
    return image, load_placed(folder / "tracks.json", fit)


def _animated(mesh: Layer) -> dict[str, Tensor]:
    """Return the mesh's depth as passed to the micro backbone, and the last frame of its video."""
    image, _ = load_condition([mesh], 64, 64, look=Look("depth", Camera(20, 60, 6.5), "z"))
    rows, columns = torch.nonzero(image[0] > 0.1, as_tuple=True)
    x0, y0, x1, y1 = (float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    track = anyi2v.Track("ring", ((x0, y0, x1, y1), (x0, y0 - 16, x1, y1 - 16)))
    tracks = anyi2v.Tracks(64, 64, (track,))
    result = anyi2v.animate(anyi2v.load("micro"), image, "a red ring on a navy background", tracks, progress=True)
    return {
        "depth of the mesh, and a track": draw_tracks(image, tracks),
        "the last frame of its video": overlay_boxes(result.video, tracks)[-1],
    }


def main(path: Path) -> None:
    """Write the figure."""
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        shown = pictures(Path(folder))
    figure = Figure(figsize=(12, 9), dpi=80, layout="constrained")
    for place, (title, picture) in zip(figure.subplots(3, 4).flat, shown.items(), strict=True):
        place.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        place.set_title(title, fontsize=11)
        place.axis("off")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/conditions.png"))
