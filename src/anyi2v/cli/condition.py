"""Flags of the condition image, and the commands `condition` and `segments`; import torch only when they run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.messages import progress, result
from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource


@dataclass(frozen=True)
class ConditionFlags(ConditionSource):
    """Flags shared by `anyi2v animate` and `anyi2v condition`."""

    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """IMAGE:MASK, pasted over the image where the mask is white; may be repeated. Without an image, the first layer is
    the bottom one and needs no mask."""


@dataclass(frozen=True)
class Condition(ConditionFlags):
    """Preview the condition image exactly as the model sees it.

    The image is the first argument, without --image; the other flags of the image are those of `anyi2v animate`.

    Examples:
    $ anyi2v condition photo.jpg --fit pad --tracks tracks.json --out look.png
    $ anyi2v condition chair.glb --render depth --camera 45 30 3 --out chair.png
    $ anyi2v condition --layer depth.png --layer sketch.png:mask.png --out mixed.png
    """

    image: Annotated[Path | None, tyro.conf.Positional] = None
    """Condition image of any modality (photo, edges, depth, sketch, ...), mesh (.obj .off .ply .stl .glb) or point
    cloud (.ply .xyz .pts .npy)."""
    tracks: Path | None = None
    """File with boxes or paths over time, drawn in a second picture."""
    backbone: str = "micro"
    """Backbone that determines the default and valid sizes: a shipped backbone, or a converted .safetensors file."""
    out: Path = Path("condition.png")
    """Output PNG file."""

    def run(self) -> None:
        """Write the picture, and with tracks a second one with boxes and paths, named *-tracks.png."""
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
        result(self.out, f"{self.out}: {fit}")
        if tracks.objects:
            write_image(drawn, draw_tracks(image, tracks))
            result(drawn, f"{drawn}: the same with boxes and paths")


@dataclass(frozen=True)
class Segments(Condition):
    """Show which regions of a condition image the method can distinguish, by K-Means over its self-attention queries.

    Writes a picture, and a track file in which every segment is a static object with its mask and box: keep those that
    should move, and give them a path.

    Examples:
    $ anyi2v segments photo.png --prompt "a red circle on a navy background"
    $ anyi2v animate --image photo.png --prompt "a red circle on a navy background" --tracks segments.json
    """

    prompt: str = ""
    """Description of the image."""
    clusters: int = 4
    """Number of segments."""
    out: Path = Path("segments.png")
    """Output PNG file; the tracks are written next to it, with the suffix .json."""
    tracks: tyro.conf.Suppress[None] = None

    def run(self) -> None:
        """Invert the image, cluster its queries, write both files."""
        if self.out.suffix.lower() != ".png":
            raise InputError(f"cannot write {self.out}: the suffix must be .png")
        from anyi2v.checkpoints.checkpoint import load
        from anyi2v.images.conditions import load_condition
        from anyi2v.images.media import write_image
        from anyi2v.reports.folder import check_file
        from anyi2v.reports.plots import draw_tracks
        from anyi2v.segments import check_clusters, segment_tracks, segments
        from anyi2v.tracks.own import save_tracks

        config = read_config(self.backbone)
        condition, table = self.condition(config), self.out.with_suffix(".json")
        check_clusters(self.clusters, config.vae.factor, condition["height"], condition["width"])
        inputs = [path for layer in condition["layers"] for path in (layer.path, layer.mask)]
        for out in (self.out, table):
            check_file(out, *inputs)
        image, _ = load_condition(**condition)
        shown = progress()
        labels = segments(load(self.backbone), image, self.prompt, clusters=self.clusters, progress=shown)
        found = segment_tracks(labels)
        write_image(self.out, draw_tracks(image, found))
        save_tracks(table, found)
        result(self.out, f"{self.out}: {len(found.objects)} segments, the largest first")
        result(table, f"{table}: the same as tracks")
