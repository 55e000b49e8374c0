"""ObjMC: the distance between where objects go and where they shall go, in two modes that are not interchangeable.

"draganything" is the script of DragAnything (utils/Eval_ObjMC/ObjMC.py, Wu et al. 2024); "strict" mends what it
leaves open. Points are (x, y) in pixels, (0, 0) the middle of the first pixel.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.opencv import check_opencv
from anyi2v.evaluation.trackers import Tracker
from anyi2v.tracks import Track, Tracks

Mode = Literal["draganything", "strict"]

GRID = 100
"""Points per side that DragAnything lets CoTracker follow; an object's is the nearest to its middle."""

GRID_SIZE = (512, 384)
"""Width and height that CoTracker resizes a video to, on which its grid is laid out with a margin of width / 64."""


class Moved(NamedTuple):
    """Objects of a video: where each is found, where it shall be, and which of its frames count."""

    found: Float[Tensor, "o f 2"]
    target: Float[Tensor, "o f 2"]
    counts: Bool[Tensor, "o f"]


def middles(tracks: Tracks) -> Float[Tensor, "o 2"]:
    """Centre of the largest circle inside each object in frame 1: the maximum of the distance to its outside.

    The object is the track's mask, cut to its first box, or the whole box where there is no mask. Beyond the frame is
    inside, as for `cv2.distanceTransform`, L2 with a 5x5 mask; of equal distances the first in reading order counts.
    """
    check_opencv()
    import cv2

    found = []
    for track in tracks.objects:
        distance = cv2.distanceTransform(object_mask(track, tracks).astype(np.uint8), cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        found.append((float(x), float(y)))
    return torch.tensor(found).view(-1, 2)


def object_mask(track: Track, tracks: Tracks) -> Bool[np.ndarray, "h w"]:
    """Pixels of an object in frame 1: its mask, cut to its first box, or the whole box where there is no mask.

    Raises InputError for a box that holds no pixel's middle.
    """
    y, x = np.mgrid[: tracks.height, : tracks.width] + 0.5
    x0, y0, x1, y1 = track.boxes[0]
    box = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    if track.mask is not None:
        rows = (np.arange(tracks.height) * track.mask.shape[0]) // tracks.height
        columns = (np.arange(tracks.width) * track.mask.shape[1]) // tracks.width
        box = box & track.mask[rows[:, None], columns]
    if not box.any():
        raise InputError(f"object {track.name!r}: its first box holds no pixel's middle; its middle is unknown")
    return box


def on_grid(points: Float[Tensor, "n 2"], width: int, height: int) -> Float[Tensor, "n 2"]:
    """The nearest points of CoTracker's grid of `GRID` x `GRID` on a video of that size."""
    nearest = []
    for i, size in enumerate((width, height)):
        margin = GRID_SIZE[0] / 64
        line = torch.linspace(margin, GRID_SIZE[i] - margin, GRID) * (size - 1) / (GRID_SIZE[i] - 1)
        nearest.append(line[(points[:, i, None] - line).abs().argmin(1)])
    return torch.stack(nearest, dim=1)


def asked_paths(tracks: Tracks, starts: Float[Tensor, "o 2"], frames: int) -> Float[Tensor, "o f 2"]:
    """Where boxes carry points of frame 1: at the same shares of the box's width and height."""
    if not tracks.objects:
        return torch.zeros(0, frames, 2)
    boxes = torch.tensor([track.boxes for track in tracks.resample(frames).objects])
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    share = (starts[:, None] + 0.5 - corner[:, :1]) / size[:, :1]
    return corner + share * size - 0.5


def follow(
    video: Float[Tensor, "f 3 h w"], tracks: Tracks, tracker: Tracker, *, mode: Mode, real: Tensor | None = None
) -> Moved:
    """Follows every object of `tracks` through a generated video.

    Args:
        video: generated, in [0, 1]; resized to the real one's size.
        tracks: objects of frame 1, in any size; without `real`, the paths that they shall take.
        tracker: in mode "draganything" it gets frames in BGR, as there.
        mode: "draganything" starts at grid points and cuts all positions to integers; all frames count. "strict" starts
            at the middles; only frames count in which the point, and the real one, is visible, without frame 1.
        real: video `[f 3 h w]` whose tracked motion is the target; None: the tracks' boxes.

    Raises InputError for a video of one frame, or of another number of frames than `real`.
    """
    if len(video) < 2:
        raise InputError("ObjMC needs videos of two frames or more; this one has one")
    like = video if real is None else real
    if len(video) != len(like):
        raise InputError(f"the generated video has {len(video)} frames, the real one {len(like)}; they must agree")
    video = F.interpolate(video, size=like.shape[2:], mode="bilinear")  # as cv2.resize does it
    height, width = like.shape[2:]
    tracks = tracks.scaled(width, height)
    starts = middles(tracks)
    if mode == "draganything":
        starts, channels = on_grid(starts, width, height), [2, 1, 0]
    else:
        channels = [0, 1, 2]
    found, visible = tracker(video[:, channels], starts)
    if real is None:
        target, seen = asked_paths(tracks, starts, len(video)), torch.ones_like(visible)
    else:
        target, seen = tracker(real[:, channels], starts)
    if mode == "draganything":
        return Moved(found.trunc(), target.trunc(), torch.ones_like(visible))
    counts = visible & seen
    counts[:, 0] = False  # both begin there
    return Moved(found, target, counts)


def distances(moved: Moved) -> Float[Tensor, "o f"]:
    """Euclidean, in pixels; NaN in frames that do not count."""
    return (moved.found - moved.target).norm(dim=-1).masked_fill(~moved.counts, torch.nan)


def per_object(moved: Moved, width: int, height: int) -> Float[Tensor, " o"]:
    """Mode "strict": an object's mean distance over the frames that count, in shares of the frame's diagonal.

    NaN for an object that is visible in no frame but the first.
    """
    return distances(moved).nanmean(1) / (width**2 + height**2) ** 0.5


def share(moved: Moved, mode: Mode, width: int, height: int) -> tuple[float, int]:
    """What a video adds to the sum and the count, whose quotient over all videos is ObjMC.

    "draganything": distances of all objects and frames, in pixels. "strict": `per_object` where it is a number.
    """
    values = distances(moved).flatten() if mode == "draganything" else per_object(moved, width, height)
    values = values[values.isfinite()].double()
    return values.sum().item(), len(values)
