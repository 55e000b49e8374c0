"""The commands `anyi2v tracks ...`: draw, check and convert track files. Imports torch only when they run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.messages import LOGGER, bars, remark, result
from anyi2v.errors import plural

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TracksShow:
    """Draw tracks over their image: boxes, paths with frame numbers, points and masks.

    Examples:
    $ anyi2v tracks show tracks.json --image edges.png --out tracks.png
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Track file in any supported format, which is detected from its content."""
    image: Path
    """Image that the tracks were drawn on."""
    out: Path
    """Output PNG file."""
    box_size: tuple[float, float] | None = None
    """Width and height of boxes for paths that have none; None: a quarter of the image's shorter side."""

    def run(self) -> None:
        """Write the picture."""
        from anyi2v.images.media import load_image, write_image
        from anyi2v.reports.folder import check_file
        from anyi2v.reports.plots import draw_tracks
        from anyi2v.tracks import read_tracks
        from anyi2v.tracks.review import summary

        check_file(self.out, self.file, self.image)
        image = load_image(self.image)
        kind, tracks = read_tracks(self.file, size=(image.shape[2], image.shape[1]), box_size=self.box_size)
        write_image(self.out, draw_tracks(image, tracks))
        result(self.out, f"{self.out}: {summary(kind, tracks)}")


@dataclass(frozen=True)
class TracksConvert:
    """Convert a track file from any supported format to ours, or to that of the published AnyI2V code.

    Examples:
    $ anyi2v tracks convert traj.npy --size 1024 576 --to own --out tracks.json
    $ anyi2v tracks convert tracks.json --to anyi2v --frames 16 --out anyi2v.json
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Track file in any supported format, which is detected from its content."""
    to: Literal["anyi2v", "own"]
    """Output format: own, or anyi2v for the JSON of the published code."""
    out: Path
    """Output file."""
    frames: int | None = None
    """Resample to this many frames; None: keep the frames."""
    size: tuple[int, int] | None = None
    """Width and height of the image that the tracks were drawn on, for files that do not contain them."""
    box_size: tuple[float, float] | None = None
    """Width and height of boxes for paths that have none; None: a quarter of the image's shorter side."""

    def run(self) -> None:
        """Write the file; print what the format cannot represent."""
        from anyi2v.reports.folder import check_file
        from anyi2v.tracks import anyi2v_json, own, read_tracks
        from anyi2v.tracks.review import summary

        check_file(self.out, self.file)
        _, tracks = read_tracks(self.file, size=self.size, box_size=self.box_size)
        if self.frames is not None:
            tracks = tracks.resample(self.frames)
        if self.to == "own":
            own.save_tracks(self.out, tracks)
        else:
            anyi2v_json.save_anyi2v(self.out, tracks)
        result(self.out, f"{self.out}: {summary(own.TITLE if self.to == 'own' else anyi2v_json.TITLE, tracks)}")
        for line in anyi2v_json.lost_in_anyi2v(tracks) if self.to == "anyi2v" else ():
            LOGGER.warning(line)


@dataclass(frozen=True)
class TracksCheck:
    """Validate a track file: print its format, its objects and possible mistakes.

    Examples:
    $ anyi2v tracks check tracks.json
    $ anyi2v tracks check tracks.json --image edges.png
    $ anyi2v tracks check traj.npy --size 1024 576 --backbone v3.safetensors
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Track file in any supported format, which is detected from its content."""
    size: tuple[int, int] | None = None
    """Width and height of the image that the tracks were drawn on, for files that do not contain them."""
    box_size: tuple[float, float] | None = None
    """Width and height of boxes for paths that have none; None: a quarter of the image's shorter side."""
    image: Path | None = None
    """Image that the tracks were drawn on; provides its size, and checks the content of the first boxes."""
    backbone: str = "micro"
    """Backbone to check against (number of frames, latent cell size)."""

    def run(self) -> None:
        """Print format, size, objects and warnings."""
        from anyi2v.tracks import read_tracks
        from anyi2v.tracks.contents import doubtful
        from anyi2v.tracks.review import followed, other_aspect, summary, warnings

        config = read_config(self.backbone)
        image = None if self.image is None else _pixels(self.image)
        size = self.size if self.size or image is None else (image.shape[2], image.shape[1])
        kind, tracks = read_tracks(self.file, size=size, box_size=self.box_size)
        print(summary(kind, tracks))
        for track in tracks.objects:
            first, last = (", ".join(f"{v:g}" for v in track.boxes[k]) for k in (0, -1))
            mask = "" if track.mask is None else f", mask {track.mask.shape[1]} x {track.mask.shape[0]}"
            weight = "" if track.weight == 1 else f", weight {track.weight:g}"
            more = f"{followed(track)}{mask}{weight}"
            print(f"  {track.name}: {plural(len(track.boxes), 'frame')}, ({first}) to ({last}), {more}")
        factor = config.vae.factor
        cell = (factor * tracks.width / config.width, factor * tracks.height / config.height)
        lines = warnings(tracks.resample(config.frames), cell)
        if image is not None:
            lines += other_aspect(kind, tracks, image.shape[2], image.shape[1]) + doubtful(image, tracks)
        for line in lines:
            print(f"warning: {line}")


def _pixels(path: Path) -> "np.ndarray":
    from anyi2v.images.media import load_image

    return load_image(path).numpy()


@dataclass(frozen=True)
class TracksFromVideo:
    """Follow boxes through a video and write them as tracks, to transfer the motion of its objects.

    Examples:
    $ anyi2v tracks from-video walk.mp4 --boxes "cow=40,200,200,330" "bird=470,40,530,80" --out tracks.json
    $ anyi2v animate --image edges.png --prompt "a horse" --tracks tracks.json
    """

    video: Annotated[Path, tyro.conf.Positional]
    """Video: mp4, GIF, npz, or a folder of frames."""
    boxes: tuple[str, ...]
    """Objects' boxes in the first frame as NAME=X0,Y0,X1,Y1, in pixels of the video."""
    out: Path = Path("tracks.json")
    """Output track file."""
    frames: int | None = None
    """Resample to this many frames; None: keep the video's frames."""
    tracker: Path | None = None
    """TorchScript file of a point tracker such as CoTracker; load only files that you trust. None: Lucas-Kanade."""

    def run(self) -> None:
        """Write the file; print the share of points followed throughout, and objects that were lost."""
        from anyi2v.errors import InputError
        from anyi2v.evaluation.following import BoxFollower
        from anyi2v.evaluation.trackers import LucasKanade, load_tracker
        from anyi2v.evaluation.transfer import boxes_of, lost, tracks_from_video
        from anyi2v.evaluation.videos import read_video
        from anyi2v.reports.folder import check_file
        from anyi2v.tracks import Tracks, save_tracks

        check_file(self.out, self.video, self.tracker)
        tracker = load_tracker(self.tracker)
        objects = boxes_of(self.boxes)
        if not objects:
            raise InputError("there is no box to follow; give --boxes NAME=X0,Y0,X1,Y1")
        video = read_video(self.video)
        first = Tracks(video.shape[3], video.shape[2], objects)
        follower = BoxFollower(LucasKanade(progress=bars()) if self.tracker is None else tracker)
        tracks, found = tracks_from_video(video, first, follower)
        for track, points in zip(tracks.objects, found.points, strict=True):
            remark(f"{track.name}: {points[-1]:.0%} of the points followed through all {len(video)} frames")
        save_tracks(self.out, tracks if self.frames is None else tracks.resample(self.frames))
        result(self.out, f"{self.out}: {plural(len(objects), 'object')} of {self.video}")
        for line in lost(tracks, found):
            LOGGER.warning(line)
