"""Followers locate boxes in a video, starting from each object's first box, by tracking points inside it."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.evaluation.objmc import object_mask
from anyi2v.evaluation.trackers import LucasKanade, Tracker
from anyi2v.tracks import Tracks


class Followed(NamedTuple):
    """Boxes of all objects in every frame of a video."""

    boxes: Float[Tensor, "o f 4"]
    """x0, y0, x1, y1 in pixels; where an object is not visible, its last visible box."""
    seen: Bool[Tensor, "o f"]
    points: Float[Tensor, "o f"]
    """Fraction of an object's points that are not lost."""


@runtime_checkable
class Follower(Protocol):
    """Follows the objects of tracks through a video."""

    def __call__(self, video: Float[Tensor, "f 3 h w"], tracks: Tracks) -> Followed:
        """Locate each object in each frame, starting with its first box.

        Args:
            video: in [0, 1].
            tracks: in pixels of the video; only the name, first box and mask of each object are used.
        """
        ...


@dataclass(frozen=True)
class BoxFollower:
    """Moves and scales each first box by the median motion of its points, as in MedianFlow (Kalal et al. 2010).

    Unlike MedianFlow, it tracks all points from frame 1, so that errors from choosing new points do not accumulate, and
    ignores points that move like the surroundings of the box, unless nearly all do.
    """

    tracker: Tracker = field(default_factory=LucasKanade)
    grid: int = 12
    """Number of points per side of the box; only those inside the object's mask are used."""
    least_points: int = 4
    """An object counts as lost with fewer visible points than this, or than a tenth of all."""
    background: float = 0.75
    """Points whose path differs from that of the surroundings by less than this many pixels belong to them."""
    least_share: float = 0.15
    """Minimum fraction of points that must move differently from the surroundings; otherwise all points are used."""

    def __call__(self, video: Float[Tensor, "f 3 h w"], tracks: Tracks) -> Followed:
        """See `Follower`; raises the tracker's InputErrors, and InputError for a box that contains no pixel centre."""
        found = [self._follow(video, tracks, number) for number in range(len(tracks.objects))]
        if not found:
            frames = len(video)
            return Followed(torch.zeros(0, frames, 4), torch.zeros(0, frames).bool(), torch.zeros(0, frames))
        return Followed(*(torch.stack(part) for part in zip(*found, strict=True)))

    def _follow(self, video: Tensor, tracks: Tracks, number: int) -> tuple[Tensor, Tensor, Tensor]:
        track = tracks.objects[number]
        box = torch.tensor(track.boxes[0])
        starts = self._starts(tracks, number)
        around = self._around(box, tracks.width, tracks.height)
        paths, visible = self.tracker(video, torch.cat([starts, around]))
        own, shown = paths[: len(starts)], visible[: len(starts)]
        far = _farthest(own - own[:, :1] - _median_shift(paths[len(starts) :], visible[len(starts) :]), shown)
        moves = far > self.background
        if moves.sum() < max(self.least_points, self.least_share * len(own)):
            moves = torch.ones_like(moves)
        elif len(around):
            moves = self._inner(box, own, shown, far, moves)
        return self._moved(box, own[moves], shown[moves])

    def _inner(self, box: Tensor, paths: Tensor, visible: Tensor, far: Tensor, moves: Tensor) -> Bool[Tensor, " n"]:
        """Select the points that move with the box.

        At the border of an object, a tracker's window covers both the object and its surroundings, and points move at
        an intermediate speed.
        """
        for _ in range(3):
            boxes, _, _ = self._moved(box, paths[moves], visible[moves])
            corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
            share = (paths[:, 0] + 0.5 - corner[0]) / size[0]
            carried = corner + share[:, None] * size - 0.5
            kept = moves & (_farthest(paths - carried, visible) < 0.25 * far)
            if kept.sum() < self.least_points:
                break
            moves = kept
        return moves

    def _starts(self, tracks: Tracks, number: int) -> Float[Tensor, "n 2"]:
        """Return points of a square grid over the pixels of the object, about `grid**2` of them."""
        y, x = torch.from_numpy(object_mask(tracks.objects[number], tracks)).nonzero(as_tuple=True)
        pixels = torch.stack([x, y], dim=1)
        spacing = max(round((len(pixels) / self.grid**2) ** 0.5), 1)
        on_grid = ((pixels - pixels.amin(0)) % spacing == spacing // 2).all(1)
        if on_grid.sum() < self.least_points:  # the object is thinner than the grid
            return pixels[:: max(len(pixels) // self.grid**2, 1)].float()
        return pixels[on_grid].float()

    def _around(self, box: Float[Tensor, " 4"], width: int, height: int) -> Float[Tensor, "n 2"]:
        """Return points in a margin around the box, half as wide as the box."""
        x0, y0, x1, y1 = box.tolist()
        margin = (x1 - x0) / 2, (y1 - y0) / 2
        xs = torch.linspace(x0 - margin[0], x1 + margin[0], self.grid)
        ys = torch.linspace(y0 - margin[1], y1 + margin[1], self.grid)
        points = torch.cartesian_prod(xs, ys)
        outside = ~((points[:, 0] > x0) & (points[:, 0] < x1) & (points[:, 1] > y0) & (points[:, 1] < y1))
        within = ((points >= 0) & (points <= torch.tensor([width - 1, height - 1]))).all(1)
        return points[outside & within]

    def _moved(
        self, box: Float[Tensor, " 4"], paths: Float[Tensor, "n f 2"], visible: Bool[Tensor, "n f"]
    ) -> tuple[Float[Tensor, "f 4"], Bool[Tensor, " f"], Float[Tensor, " f"]]:
        """Return the box in each frame, whether it is visible there, and the fraction of visible points."""
        least = max(self.least_points, len(paths) // 10)
        centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        boxes, seen = [box], [torch.tensor(True)]
        for frame in range(1, paths.shape[1]):
            kept = visible[:, frame]
            seen.append((kept.sum() >= least) & seen[-1])
            if not seen[-1]:
                boxes.append(boxes[-1])
                continue
            before, after = paths[kept, 0], paths[kept, frame]
            lengths = torch.pdist(before)
            far = lengths > 0.25 * lengths.max()
            scale = (torch.pdist(after)[far] / lengths[far]).median() if far.any() else torch.tensor(1.0)
            # points are measured from the centre of the first pixel, boxes from its corner
            middle = (after + scale * (centre - 0.5 - before)).median(0).values + 0.5
            boxes.append(torch.cat([middle - scale * half, middle + scale * half]))
        return torch.stack(boxes), torch.stack(seen), visible.float().mean(0)


def _median_shift(paths: Float[Tensor, "n f 2"], visible: Bool[Tensor, "n f"]) -> Float[Tensor, "f 2"]:
    """Return the median displacement since frame 1 of the visible points; 0 where none is visible."""
    if not len(paths):
        return torch.zeros(paths.shape[1], 2)
    shifts = (paths - paths[:, :1]).masked_fill(~visible[..., None], torch.nan)
    return shifts.nanmedian(0).values.nan_to_num(0)


def _farthest(differences: Float[Tensor, "n f 2"], visible: Bool[Tensor, "n f"]) -> Float[Tensor, " n"]:
    return (differences.norm(dim=-1) * visible).max(1).values
