"""Segmentation of objects and ground in a picture, trained without the objects that a gate is judged by.

A small network, trained in minutes on other objects of the package on the same grounds. It only learns which pixels are
not ground, so it cannot add an outline that a sample lacks.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from tqdm import tqdm

from anyi2v.files import atomic
from benchmarks.scenes.world import Pictures, render

OTHER_OBJECTS = (
    *("1f40c", "1f419", "1f980", "1f98a", "1f427", "1f434", "1f437", "1f43c", "1f42c", "1f420", "1f41d", "1f99c"),
    *("1f995", "1f9a9", "1f994", "1f33b", "1f339", "1f334", "1f33d", "1f955", "1f353", "1f34e", "1f34c", "1f354"),
    *("1f355", "1f370", "1f369", "1f68c", "1f697", "1f6b2", "1f681", "1f6f8", "1f6f6", "1f3ba", "1f3bb", "1f941"),
    *("1f528", "1f527", "1f9ea", "1f511", "1f3a9", "1f451", "1f45f", "1f9e2", "1f4a1", "1f4f7", "23f0", "1fa91"),
)
"""Code points: animals, plants, food, vehicles, instruments, tools."""
PICTURES, BATCH, EPOCHS, LR = 4000, 16, 5, 3e-3
FIRST = 5_000_000
"""Number of the first picture; no model is trained on these."""


class Segmenter(nn.Module):
    """A UNet with three levels below half the resolution."""

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 64)):
        super().__init__()
        a, b, c = widths
        self.fine, self.middle, self.coarse = _convs(12, a), _convs(a, b), _convs(b, c)
        self.up_middle, self.up_fine = _convs(b + c, b), _convs(a + b, a)
        self.out = nn.Conv2d(a, 4, 1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n h w"]:
        """Return object logits for images in [0, 1] whose sides are multiples of 8."""
        fine = self.fine(F.pixel_unshuffle(images - 0.5, 2))
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], 1))
        fine = self.up_fine(torch.cat([fine, F.interpolate(middle, scale_factor=2.0)], 1))
        return F.pixel_shuffle(self.out(fine), 2).squeeze(1)

    @torch.no_grad()
    def masks(self, images: Float[Tensor, "n 3 h w"]) -> Bool[Tensor, "n h w"]:
        """Return the object masks of images in [0, 1]."""
        return torch.cat([self(part) > 0 for part in images.split(BATCH)])


def _convs(before: int, after: int) -> nn.Sequential:
    first, second = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
    return nn.Sequential(first, nn.GroupNorm(4, after), nn.SiLU(), second, nn.GroupNorm(4, after), nn.SiLU())


def load_segmenter(package: Path, scratch: Path, size: int) -> Segmenter:
    """Return the segmenter for pictures of `size` pixels, trained once and cached in the scratch folder."""
    path = scratch / f"segmenter-{size}.pt"
    torch.manual_seed(0)
    network = Segmenter().to(memory_format=torch.channels_last)
    if not path.exists():
        train(network, render(package, OTHER_OBJECTS, FIRST, PICTURES, size, 180.0))
        with atomic(path) as temporary:
            torch.save(network.state_dict(), temporary)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def train(network: Segmenter, pictures: Pictures) -> None:
    """Minimise the cross entropy between the predicted mask and the true alpha, with random mirroring."""
    generator = Generator().manual_seed(0)
    steps = EPOCHS * (len(pictures.images) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps)
    for _ in tqdm(range(steps), desc="segmenter", mininterval=10):
        which = torch.randint(len(pictures.images), (BATCH,), generator=generator)
        images, alpha = pictures.images[which].float() / 255, pictures.alpha[which].float() / 255
        if torch.rand((), generator=generator) < 0.5:
            images, alpha = images.flip(-1), alpha.flip(-1)
        F.binary_cross_entropy_with_logits(network(images), alpha).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
