"""Prediction of a job's memory before it starts, and a check of whether it fits.

The passes run on fake tensors, which have shapes but no values; their storages are counted while they are alive,
including those saved by autograd. Nothing is computed.
"""

import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # documented, although the module is named with _
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.networks import Backbone, build
from anyi2v.backbone.unet import UNet, points, record
from anyi2v.denoiser import PACK_FROM
from anyi2v.diffusion import inversion_timesteps
from anyi2v.errors import ResourceError
from anyi2v.execution.limits import free_memory
from anyi2v.execution.packed import packed_size
from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.method.alignment import feature_map
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import MethodConfig, OperatorKind
from anyi2v.method.crops import Crops
from anyi2v.method.footprint import Footprint
from anyi2v.method.objective import FeatureAlignment
from anyi2v.taps import At, Tap, no_tap
from anyi2v.tracks import Tracks


@dataclass(frozen=True)
class Prediction:
    """Memory in bytes that a job needs on its device, without the overhead of libraries."""

    weights: int
    passes: dict[str, int]
    """Peak memory of each stage, without the weights."""

    @property
    def peak(self) -> int:
        """Memory of the weights and the largest stage."""
        return self.weights + max(self.passes.values())

    def __str__(self) -> str:
        stage = max(self.passes, key=lambda name: self.passes[name])
        return f"{gib(self.peak)} (weights {gib(self.weights)}, {stage} {gib(self.passes[stage])})"


def gib(count: int) -> str:
    """Format a number of bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"


def predict(
    config: BackboneConfig,
    method: MethodConfig | Footprint,
    video: tuple[int, int, int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    operators: OperatorKind = "fast",
    low_memory: bool = False,
    tracks: Tracks | None = None,
) -> Prediction:
    """Predict the memory of one job of `anyi2v.animate`; `video` is (frames, height, width) in pixels.

    Not included: libraries and the workspace of their kernels, and without `tracks` the crops of their boxes.

    Raises InputError as `make_crops` does.
    """
    method, maps, parameters = method if isinstance(method, Footprint) else Footprint(method)
    (frames, height, width), factor = video, config.vae.factor
    grid = (config.vae.latent_channels, height // factor, width // factor)
    optimises = method.optimise_steps > 0 and method.iterations > 0 and (tracks is None or bool(tracks.objects))
    crops = None
    if tracks is not None and optimises:
        tracks = tracks.scaled(width, height).resample(frames)
        crops = make_crops(tracks, (2 * grid[1], 2 * grid[2]), frames, first_box=method.first_box)
    edited = _points_of(config, maps) if maps else []
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        backbone = build(config)
        backbone.operators = operators
        for network in backbone.networks.values():
            kind = torch.float32 if network is backbone.vae else dtype
            # not network.to(): fake tensors cannot be exchanged in place
            network.load_state_dict({key: x.to(kind) for key, x in network.state_dict().items()}, assign=True)
            # tables that are not in checkpoints are always created on the CPU
            for module in network.modules():
                for name, table in module.named_buffers(recurse=False):
                    setattr(module, name, table.to(device))
            network.eval().requires_grad_(False)
        passes = {
            "decoding": _peak_of_decoding(backbone, frames, grid, low_memory),
            "denoising": _peak_of_denoising(backbone, method, frames, grid, low_memory, edited),
        }
        if crops is not None:  # the masks of the result
            passes["decoding"] += len(crops.names) * frames * height * width * 4
        if optimises:
            passes["optimisation"] = _peak_of_optimisation(backbone, method, frames, grid, low_memory, crops)
            iterations = min(method.optimise_steps, method.steps) * method.iterations
            graphs = torch.device(device).type == "cuda" and operators == "fast" and not low_memory
            if graphs and iterations > 1:
                passes["denoising"] += passes["optimisation"]  # kept by the CUDA graph for the next iteration
        packs = device == "cpu" and operators == "fast" and not low_memory
        if packs and _inversion_passes(backbone, method) >= PACK_FROM:
            passes["inversion"] = _peak_of_inversion(backbone, grid)
        weights = sum(map(size_of, backbone.networks.values())) + parameters * dtype.itemsize
        return Prediction(weights, passes)


def _points_of(config: BackboneConfig, maps: Collection[tuple[Kind, AttentionKind]]) -> list[str]:
    with torch.device("meta"):
        known = points(UNet(config.unet))
    return [name for name, point in known.items() if (point.kind, point.attention) in maps]


def size_of(network: nn.Module) -> int:
    """Return the size of the parameters and buffers in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))


def available(device: str) -> int | None:
    """Return the free memory of the device in bytes (for a CPU see `free_memory`); None if unknown."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.mem_get_info(kind)[0]
    return free_memory() if kind.type == "cpu" else None


def fitting(free: int | None, predictions: Mapping[bool, Callable[[], Prediction]]) -> tuple[bool, Prediction]:
    """Return the first mode of a job that fits into `free` bytes (None: unknown, all fit), and its prediction.

    Args:
        free: see `available`.
        predictions: function that returns the prediction, by whether it is for low-memory mode, in order of preference;
            called only as needed.

    Raises ResourceError if none fits.
    """
    needed = None
    for low_memory, prediction in predictions.items():
        needed = prediction()
        if free is None or needed.peak <= free:
            return low_memory, needed
    raise ResourceError(
        f"the job needs {needed} even in low-memory mode, but {gib(free or 0)} are free; use fewer frames, a smaller "
        "size, fewer or smaller boxes, or bfloat16"
    )


Grid = tuple[int, int, int]
"""Channels, height and width of the latents."""


def _inputs(backbone: Backbone, batch: int, frames: int, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    text = torch.zeros(batch, backbone.config.text.length, backbone.config.unet.context_dim)
    return torch.zeros(batch, frames, *grid), torch.zeros(batch, dtype=torch.long), text


def _peak_of_optimisation(
    backbone: Backbone, method: MethodConfig, frames: int, grid: Grid, low_memory: bool, crops: Crops | None
) -> int:
    """Return the peak of the pass to the aligned features, the alignment of the crops, if known, and the backward
    pass."""
    z, t, text = _inputs(backbone, 1, frames, grid)
    fps = float(backbone.config.fps)
    with _Meter() as meter:
        z.requires_grad_()
        seen = record(backbone.unet, method.align, z, t, text, fps=fps, window=method.window, checkpoint=low_memory)
        if crops is None:
            loss = sum((x.square().sum() for x in seen.values()), torch.zeros(()))
        else:
            maps = {name: feature_map(name, seen[name]) for name in method.align}
            # the randomised PCA needs the value of a seed, which a fake tensor does not have
            loss = FeatureAlignment(replace(method, pca_solver="exact"))(maps, crops.to(z.device)).loss
        torch.autograd.grad(loss, z)
    return meter.peak


@torch.no_grad()
def _peak_of_denoising(
    backbone: Backbone, method: MethodConfig, frames: int, grid: Grid, low_memory: bool, edited: Collection[str]
) -> int:
    """Return the peak of a guided pass without edits or of one of two passes with edits, whichever is larger."""
    passes: list[tuple[int, Tap]] = [(1 if low_memory or method.guidance_scale <= 1 else 2, no_tap)]
    if edited:
        passes.append((1, At(edited, lambda _, attention: attention.clone())))
    peaks = []
    for batch, tap in passes:
        z, t, text = _inputs(backbone, batch, frames, grid)
        with _Meter() as meter:
            backbone.unet(z, t, text, fps=float(backbone.config.fps), window=method.window, tap=tap)
        peaks.append(meter.peak)
    return max(peaks)


@torch.no_grad()
def _peak_of_inversion(backbone: Backbone, grid: Grid) -> int:
    """Return the peak of a pass of one image, plus the packed copy of the weights."""
    z, t, text = _inputs(backbone, 1, 1, grid)
    with _Meter() as meter:
        backbone.unet(z, t, text, fps=float(backbone.config.fps), temporal=False)
    return meter.peak + packed_size(backbone.unet)


def _inversion_passes(backbone: Backbone, method: MethodConfig) -> int:
    if method.inversion == "noise":
        return 1
    until, stride = method.inversion_timestep, method.inversion_stride
    return len(inversion_timesteps(backbone.config.schedule, until=until, stride=stride))


@torch.no_grad()
def _peak_of_decoding(backbone: Backbone, frames: int, grid: Grid, low_memory: bool) -> int:
    with _Meter() as meter:
        backbone.vae.decode(torch.zeros(frames, *grid), chunk=1 if low_memory else 8)
    return meter.peak


class _Meter(TorchDispatchMode):
    """Counts the bytes of all storages created inside the mode while they are alive.

    Views of existing storages, such as parts of the weights, are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.live += self.sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
