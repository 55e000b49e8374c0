"""Follows the objects of the synthetic world by their colours, which are known: nothing is lost by tracking."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.following import Followed
from anyi2v.micro.benchmark.measure import centroids, find_object
from anyi2v.micro.world.world import OBJECT_COLOURS
from anyi2v.tracks import Track, Tracks


@dataclass(frozen=True)
class ColourFollower:
    """A `Follower` for videos of the synthetic world, whose tracks are named like "red circle".

    Each first box moves like the centroid of the patch of its colour and grows like the root of its area. An object is
    not seen where there is no such patch, where the patch touches the border, which may cut it, and in all frames if it
    is not seen in frame 1.
    """

    def __call__(self, video: Float[Tensor, "f 3 h w"], tracks: Tracks) -> Followed:
        """See `Follower`; raises InputError for an object whose name does not begin with a colour of the world."""
        boxes, seen = [], []
        for track in tracks.objects:
            masks = find_object(video, _colour(track))
            box = torch.tensor(track.boxes[0])
            there = masks.flatten(1).any(1) & ~_cut(masks)
            there &= there[0].clone()
            centres, scale = centroids(masks), (masks.sum((1, 2)) / masks[0].sum()).sqrt()[:, None]
            middle = (box[:2] + box[2:]) / 2 + centres - centres[0]
            half = (box[2:] - box[:2]) / 2 * scale
            found = torch.cat([middle - half, middle + half], dim=1)
            boxes.append(torch.where(there[:, None], found, box))
            seen.append(there)
        frames = len(video)
        if not boxes:
            return Followed(torch.zeros(0, frames, 4), torch.zeros(0, frames).bool(), torch.zeros(0, frames))
        shown = torch.stack(seen)
        return Followed(torch.stack(boxes), shown, shown.float())


def _colour(track: Track) -> str:
    colour = track.name.split()[0]
    if colour not in OBJECT_COLOURS:
        raise InputError(
            f"object {track.name!r}: its name must begin with a colour of the synthetic world to follow it by: "
            f"{', '.join(OBJECT_COLOURS)}"
        )
    return colour


def _cut(masks: Bool[Tensor, "f h w"]) -> Bool[Tensor, " f"]:
    return masks[:, [0, -1]].flatten(1).any(1) | masks[:, :, [0, -1]].flatten(1).any(1)
