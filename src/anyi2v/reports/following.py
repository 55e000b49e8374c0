"""Whether the objects of a video follow their tracks, measured in the video itself.

The motion since frame 1 is measured: the object is whatever the video shows in the first box, wherever it lies in it.
The results are stored in `trajectories` of a run's record; the video does not depend on them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.numerics.template_matching import locate
from anyi2v.tracks import Tracks
from anyi2v.tracks.masks import cropped

MOST = 0.05
"""Maximum error, in widths, of an object that follows its track. Of the benchmark's 200 plain cases, the full method
stays below it in 99 %, and without optimisation 1 % do (`relative_error` in benchmarks/results/micro/scores.json)."""
MOST_OF_MOTION = 0.5
"""Maximum error as a share of the mean distance of the boxes from the first one: on a short track, the error is small
even if the object does not move."""
LEAST = 0.02
"""Limit, in widths, that is never lowered for short tracks; the full method stays below it in 96 % of those cases."""
VISIBLE = 0.5
"""Minimum share of a box inside the frame for its frame to count."""


@dataclass(frozen=True)
class Following:
    """How closely one object follows its track."""

    name: str
    error: float | None
    """Mean distance in pixels between the centres of the object and of its box, over the counted frames; None if the
    object is lost, or no frame counts."""
    share: float | None
    """The error in widths of the video."""
    limit: float
    """Maximum error, in pixels, of an object that follows its track."""
    frames: int
    """Number of counted frames: those after frame 1 with at least half of the box inside the frame."""
    lost: int | None
    """First counted frame, from 1, that does not show the object; 1 if frame 1 shows nothing to recognise in its
    box."""

    @property
    def follows(self) -> bool:
        """Whether the object follows its track, as far as is known."""
        return self.lost is None and (self.error is None or self.error <= self.limit)

    @property
    def distance(self) -> str:
        """The error in words; empty if there is none."""
        if self.error is None or self.share is None:
            return ""
        return f"{self.error:.1f} px ({self.share:.1%} of the width)"

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.lost == 1:
            return "not measured: frame 1 shows nothing to recognise in its box"
        if self.lost is not None:
            return f"lost in frame {self.lost}"
        if self.error is None:
            return "not measured: its box is inside the frame in no later frame"
        return "follows its track" if self.follows else "does not follow its track"


def measure_following(video: Float[Tensor, "f 3 h w"], tracks: Tracks) -> list[Following]:
    """Measure how closely each object follows its track, as in `Following`; frame 1 does not count.

    Args:
        video: in [0, 1], on the CPU.
        tracks: in any frame of reference over the video.
    """
    frames, _, height, width = video.shape
    tracks = tracks.scaled(width, height).resample(frames)
    found = []
    for track in tracks.objects:
        mask = None if track.mask is None else torch.from_numpy(cropped(track.mask, (0, 0, 1, 1), width, height))
        located = locate(video, track.boxes[0], mask)
        boxes = torch.tensor(track.boxes)
        asked, counts = (boxes[:, :2] + boxes[:, 2:]) / 2, _counted(boxes, width, height)
        count, missing = int(counts.sum()), (counts & ~located.found).nonzero().flatten().tolist()
        moved = (asked - asked[0]).norm(dim=-1)[counts].mean().item() / width if count else 0.0
        error = (located.centres - asked).norm(dim=-1)[counts].mean().item() if count and not missing else None
        found.append(
            Following(
                name=track.name,
                error=None if error is None else round(error, 3),
                share=None if error is None else round(error / width, 5),
                limit=round(width * min(MOST, max(MOST_OF_MOTION * moved, LEAST)), 3),
                frames=count,
                lost=None if not missing else missing[0] + 1 if located.found[0] else 1,
            )
        )
    return found


def _counted(boxes: Float[Tensor, "f 4"], width: int, height: int) -> Bool[Tensor, " f"]:
    """Return the frames after frame 1 with at least `VISIBLE` of the box's area inside the frame."""
    size = torch.tensor([width, height])
    inside = (torch.minimum(boxes[:, 2:], size) - boxes[:, :2].clamp(min=0)).clamp(min=0)
    counts = (inside / (boxes[:, 2:] - boxes[:, :2])).prod(-1) >= VISIBLE
    counts[0] = False
    return counts


def recorded(data: Mapping[str, Any]) -> list[Following]:
    """Read the results from the record of a run; older records have none.

    Raises KeyError, TypeError or ValueError for entries of another form.
    """
    return [
        Following(
            name=str(entry["name"]),
            error=None if entry["error"] is None else float(entry["error"]),
            share=None if entry["share"] is None else float(entry["share"]),
            limit=float(entry["limit"]),
            frames=int(entry["frames"]),
            lost=None if entry["lost"] is None else int(entry["lost"]),
        )
        for entry in data.get("trajectories", [])
    ]


def mean_error(found: Iterable[Following]) -> float | None:
    """Return the mean error in pixels of the objects that have one; None if none has."""
    errors = [one.error for one in found if one.error is not None]
    return sum(errors) / len(errors) if errors else None


def problems(found: Iterable[Following]) -> list[str]:
    """Return name and verdict of each object that is lost or does not follow its track."""
    return [f"{one.name}: {one.verdict}" for one in found if not one.follows]


def advice(found: Iterable[Following], method: str | None = None) -> str:
    """Return a sentence on what to try if an object does not follow its track; empty if all do.

    `method` is the name of a method other than AnyI2V.
    """
    if not problems(found):
        return ""
    flags = "a larger --method.lr, more --method.iterations or --method.optimise-steps"
    settings = flags if method is None else f"other settings of {method}"
    return (
        f"Try {settings}, boxes that fit the objects more tightly, or shorter and fewer motions; check the inputs with "
        "`anyi2v condition` and `anyi2v tracks check`."
    )
