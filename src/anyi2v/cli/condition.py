"""The flags that say what the condition image is, and `anyi2v condition` to see it. Free of torch until they run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource


@dataclass(frozen=True)
class ConditionFlags(ConditionSource):
    """What `anyi2v animate` and `anyi2v condition` both understand."""

    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """IMAGE:MASK, laid over --image where the mask is white; may be repeated. Without --image, the first layer is
    the bottom and needs no mask."""


@dataclass(frozen=True)
class Condition(ConditionFlags):
    """Show what the model will be given, with the flags of `anyi2v animate`.

    Examples:
    $ anyi2v condition photo.jpg --fit pad --tracks tracks.json --out look.png
    $ anyi2v condition chair.glb --render depth --camera 45 30 3 --out chair.png
    $ anyi2v condition --layer depth.png --layer sketch.png:mask.png --out mixed.png
    """

    image: Annotated[Path | None, tyro.conf.Positional] = None
    """Condition image: photo, edges, depth, sketch, anything; or a mesh (.obj .off .ply .stl .glb) or point
    cloud (.ply .xyz .pts .npy)."""
    tracks: Path | None = None
    """File with boxes or paths over time; drawn into a second picture beside the first."""
    backbone: str = "micro"
    """Decides the size, and which sizes are possible: a shipped backbone, or a converted .safetensors file."""
    out: Path = Path("condition.png")
    """PNG file."""

    def run(self) -> None:
        """Writes the picture; with tracks, a second one with boxes and paths, whose name ends in -tracks.png."""
        if self.out.suffix.lower() != ".png":
            raise InputError(f"cannot write {self.out}: the suffix must be .png")
        from anyi2v.images.conditions import load_condition
        from anyi2v.images.media import check_tracks, load_placed, write_image
        from anyi2v.reports.folder import check_file
        from anyi2v.reports.plots import draw_tracks

        condition, drawn = self.condition(read_config(self.backbone)), self.out.with_name(f"{self.out.stem}-tracks.png")
        inputs = [path for layer in condition["layers"] for path in (layer.path, layer.mask)]
        for out in (self.out, *([drawn] if self.tracks else [])):
            check_file(out, *inputs, self.tracks)
        image, fit = load_condition(**condition)
        tracks = check_tracks(load_placed(self.tracks, fit), image)
        write_image(self.out, image)
        print(f"{self.out}: {fit}")
        if tracks.objects:
            write_image(drawn, draw_tracks(image, tracks))
            print(f"{drawn}: the same with boxes and paths")


@dataclass(frozen=True)
class Segments(Condition):
    """Show what the method can tell apart in a condition image: K-Means over its self-attention queries.

    Writes a picture, and a track file with every segment as an object that stands still, with its mask and box: keep
    those that shall move, and give them a path.

    Examples:
    $ anyi2v segments photo.png --prompt "a red circle on a navy background"
    $ anyi2v animate --image photo.png --prompt "a red circle on a navy background" --tracks segments.json
    """

    prompt: str = ""
    """What the image shows."""
    clusters: int = 4
    """How many segments."""
    out: Path = Path("segments.png")
    """PNG file; the tracks are written beside it, with the suffix .json."""
    tracks: tyro.conf.Suppress[None] = None

    def run(self) -> None:
        """Inverts the image, clusters its queries, writes both files."""
        if self.out.suffix.lower() != ".png":
            raise InputError(f"cannot write {self.out}: the suffix must be .png")
        from anyi2v.checkpoints.checkpoint import load
        from anyi2v.images.conditions import load_condition
        from anyi2v.images.media import write_image
        from anyi2v.reports.folder import check_file
        from anyi2v.reports.plots import draw_tracks
        from anyi2v.segments import segment_tracks, segments
        from anyi2v.tracks.own import save_tracks

        condition, table = self.condition(read_config(self.backbone)), self.out.with_suffix(".json")
        inputs = [path for layer in condition["layers"] for path in (layer.path, layer.mask)]
        for out in (self.out, table):
            check_file(out, *inputs)
        image, _ = load_condition(**condition)
        backbone, bars = load(self.backbone), sys.stderr.isatty()
        found = segment_tracks(segments(backbone, image, self.prompt, clusters=self.clusters, progress=bars))
        write_image(self.out, draw_tracks(image, found))
        save_tracks(table, found)
        print(f"{self.out}: {len(found.objects)} segments, the largest first; {table}: the same as tracks")
