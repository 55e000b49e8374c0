"""Followers find boxes in a video: from the first box of every object, by the points in it."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.evaluation.objmc import object_mask
from anyi2v.evaluation.trackers import LucasKanade, Tracker
from anyi2v.tracks import Tracks


class Followed(NamedTuple):
    """The boxes of all objects, found in every frame of a video."""

    boxes: Float[Tensor, "o f 4"]
    """x0, y0, x1, y1 in pixels; where the object is not seen, the last box that was."""
    seen: Bool[Tensor, "o f"]
    points: Float[Tensor, "o f"]
    """Share of an object's points that are not lost."""


@runtime_checkable
class Follower(Protocol):
    """Follows the objects of tracks through a video."""

    def __call__(self, video: Float[Tensor, "f 3 h w"], tracks: Tracks) -> Followed:
        """Where each object is in each frame, beginning with its first box.

        Args:
            video: in [0, 1].
            tracks: in pixels of the video; of each object only its name, its first box and its mask are looked at.
        """
        ...


@dataclass(frozen=True)
class BoxFollower:
    """Moves and scales each first box as the median of its points moves, as in MedianFlow (Kalal et al. 2010).

    Unlike there, all points are followed from frame 1, so that errors do not add up by choosing new ones, and points
    that move as the surroundings of the box do are not the object's, unless nearly all do.
    """

    tracker: Tracker = field(default_factory=LucasKanade)
    grid: int = 12
    """Points per side of the box, in its object's mask."""
    least_points: int = 4
    """With fewer points than these, and than a tenth of all, an object is not seen."""
    background: float = 0.75
    """Points whose path differs by less than this many pixels from that of the surroundings belong to them."""
    least_share: float = 0.15
    """Of the points must move differently from the surroundings; otherwise all count."""

    def __call__(self, video: Float[Tensor, "f 3 h w"], tracks: Tracks) -> Followed:
        """See `Follower`; raises InputError as the tracker does, and for a box that holds no pixel's middle."""
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
        """Those of the points that go where the box takes them.

        At the border of an object, a tracker's windows show both object and surroundings, and points move by something
        in between.
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
        """Points of a square grid over the pixels of the object, about `grid**2` of them."""
        y, x = torch.from_numpy(object_mask(tracks.objects[number], tracks)).nonzero(as_tuple=True)
        pixels = torch.stack([x, y], dim=1)
        spacing = max(round((len(pixels) / self.grid**2) ** 0.5), 1)
        on_grid = ((pixels - pixels.amin(0)) % spacing == spacing // 2).all(1)
        if on_grid.sum() < self.least_points:  # the object is thinner than the grid
            return pixels[:: max(len(pixels) // self.grid**2, 1)].float()
        return pixels[on_grid].float()

    def _around(self, box: Float[Tensor, " 4"], width: int, height: int) -> Float[Tensor, "n 2"]:
        """Points in a frame around the box, half as wide as the box."""
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
        """The box in each frame, whether it is seen there, and by which share of the points."""
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
            # points count from the middle of the first pixel, boxes from its corner
            middle = (after + scale * (centre - 0.5 - before)).median(0).values + 0.5
            boxes.append(torch.cat([middle - scale * half, middle + scale * half]))
        return torch.stack(boxes), torch.stack(seen), visible.float().mean(0)


def _median_shift(paths: Float[Tensor, "n f 2"], visible: Bool[Tensor, "n f"]) -> Float[Tensor, "f 2"]:
    """How far points have moved since frame 1, the median of those that are visible; 0 where none is."""
    if not len(paths):
        return torch.zeros(paths.shape[1], 2)
    shifts = (paths - paths[:, :1]).masked_fill(~visible[..., None], torch.nan)
    return shifts.nanmedian(0).values.nan_to_num(0)


def _farthest(differences: Float[Tensor, "n f 2"], visible: Bool[Tensor, "n f"]) -> Float[Tensor, " n"]:
    return (differences.norm(dim=-1) * visible).max(1).values
