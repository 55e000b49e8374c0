"""Predicted memory against measured, low-memory mode against the plain one, and what happens when nothing fits."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from torch import nn

from anyi2v.backbone.config import BackboneConfig, MotionConfig, RotaryConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.errors import ResourceError
from anyi2v.execution.limits import free_memory
from anyi2v.execution.memory import Prediction, available, fitting, predict, size_of
from anyi2v.method.config import MethodConfig
from anyi2v.method.footprint import Footprint
from anyi2v.pipeline import animate
from anyi2v.tracks import Track, Tracks

from .networks import SHORT, TINY, WORDS, tiny_backbone

CONFIG = BackboneConfig(
    name="some",
    unet=UNetConfig(channels=(64, 128, 128), attention=(True, True, False), context_dim=64, temporal=MotionConfig()),
    vae=VAEConfig(channels=(16, 32), layers=1, groups=4),
    text=TextConfig(width=64, layers=1, heads=2, length=6, vocab_size=len(WORDS), words=WORDS),
    height=64,
    width=64,
    frames=8,
)
METHOD = MethodConfig(align=("up_blocks.1.attentions.1.query",), inject_hidden=(), inject_query=(), share_kv=())

MEASURE = """
import json, sys, torch, torch.utils.checkpoint
from anyi2v.backbone.networks import build
from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.unet import record
from functools import partial
checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
torch.set_num_threads(1)
config = BackboneConfig.from_json(sys.argv[1])
low, frames, name = sys.argv[2] == "True", int(sys.argv[3]), sys.argv[4]
status = lambda key: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key + ":"))
# what libraries load when they are used first
warm = torch.ones(64, 64, requires_grad=True)
checkpoint(lambda x: torch.nn.functional.conv2d((x @ x)[None, None], torch.ones(1, 1, 3, 3)), warm).sum().backward()
before = status("VmRSS")
backbone = build(config)
for network in backbone.networks.values():
    network.requires_grad_(False)
z = torch.zeros(1, frames, 4, config.height // 2, config.width // 2, requires_grad=True)
seen = record(backbone.unet, [name], z, 500, torch.zeros(1, 6, 64), checkpoint=low)
torch.autograd.grad(seen[name].square().sum(), z)
print(status("VmHWM") - before)
"""


ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Freed tensors go back to the system at once; else the allocator keeps what it likes, up to twice the peak."""


def measured(low_memory: bool, frames: int) -> int:
    """Growth of a fresh process by weights and one pass to the aligned features and back, in bytes."""
    args = [json.dumps(json.loads(CONFIG.to_json())), str(low_memory), str(frames), METHOD.align[0]]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *args], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    return int(done.stdout)


LEFT = """
import torch
from anyi2v.execution.machine import release_memory
resident = lambda: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmRSS:"))
small = [torch.ones(16384) for _ in range(4096)]
last = torch.ones(1024)
del small
kept = resident()
release_memory()
print(kept - resident(), last.sum().item())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed"
)
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    freed, alive = map(float, done.stdout.split())
    assert freed > 0.9 * 4096 * 16384 * 4
    assert alive == 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc/self/status")
@pytest.mark.parametrize("low_memory", [False, True])
def test_predicted_peak_is_the_measured_one(low_memory: bool) -> None:
    predicted, found = [], []
    for frames in (4, 16):  # what they differ by is many times the allocator's whims, some MB
        needed = predict(CONFIG, METHOD, (frames, 64, 64), low_memory=low_memory)
        predicted.append(needed.weights + needed.passes["optimisation"])
        found.append(measured(low_memory, frames))
    # kernels borrow buffers and keep rearranged weights, here some 95 MB whatever the number of frames
    assert found[1] - found[0] == pytest.approx(predicted[1] - predicted[0], rel=0.2)
    for wish, peak in zip(predicted, found, strict=True):
        assert 0.9 * wish < peak < 1.1 * wish + 150e6


def test_attention_maps_that_a_method_edits_are_predicted() -> None:
    """Alive at once are a map and its edited copy, of a single pass: guidance with edits takes two."""
    config = replace(METHOD, optimise_steps=0)
    plain = predict(CONFIG, config, (2, 64, 64)).passes["denoising"]
    spatial, text = (Footprint(config, frozenset({("probs", kind)})) for kind in ("spatial", "text"))
    edited = predict(CONFIG, spatial, (2, 64, 64)).passes["denoising"]
    cells = (CONFIG.height // 2) * (CONFIG.width // 2)
    size = 2 * CONFIG.unet.heads * cells**2 * 4
    assert plain < 2 * size <= edited < 3 * size + plain
    assert predict(CONFIG, text, (2, 64, 64)).passes["denoising"] == plain


def test_prediction_counts_weights_exactly_and_grows_with_the_job() -> None:
    backbone = tiny_backbone()
    config = replace(backbone.config, unet=backbone.unet.config)
    plain = predict(config, SHORT, (4, 16, 16))
    assert plain.weights == sum(map(size_of, backbone.networks.values()))
    longer = predict(config, SHORT, (8, 16, 16))
    assert longer.passes["optimisation"] > 1.8 * plain.passes["optimisation"]
    half = predict(config, SHORT, (4, 16, 16), dtype=torch.bfloat16)
    assert half.passes["optimisation"] < 0.7 * plain.passes["optimisation"]
    low = predict(config, SHORT, (4, 16, 16), low_memory=True)
    assert low.passes["optimisation"] < plain.passes["optimisation"]
    assert low.passes["denoising"] < plain.passes["denoising"]
    assert "optimisation" not in predict(config, replace(SHORT, optimise_steps=0), (4, 16, 16)).passes


@pytest.mark.parametrize("unet", [TINY, replace(TINY, temporal=RotaryConfig(heads=2, rotary_dims=4))])
def test_accelerators_are_predicted_for_too(unet: UNetConfig) -> None:
    """Fake tensors may be on a device that is not there; without one, nothing goes back through them."""
    config = replace(tiny_backbone().config, unet=unet)
    needed = predict(config, replace(SHORT, optimise_steps=0), (4, 16, 16), dtype=torch.float16, device="cuda")
    assert needed.peak > needed.weights > 0


def test_size_counts_shared_types() -> None:
    assert size_of(nn.Linear(3, 5)) == 4 * 20
    assert size_of(nn.Linear(3, 5).half()) == 2 * 20


def test_low_memory_gives_the_same_video_up_to_rounding() -> None:
    backbone, image = tiny_backbone(), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    tracks = Tracks(16, 16, (Track("ball", ((2, 2, 8, 8), (8, 8, 14, 14))),))
    plain, low = (
        animate(backbone, image, "a red ball", tracks, config=SHORT, low_memory=mode) for mode in (False, True)
    )
    # sums of a batch and of one video alone are rounded differently, some 1e-6 over the steps
    torch.testing.assert_close(low.video, plain.video, rtol=0, atol=1e-4)
    assert [x.loss for x in low.losses] == pytest.approx([x.loss for x in plain.losses], rel=1e-4)


def test_the_first_mode_that_fits_is_taken_and_no_more_are_asked() -> None:
    asked: list[bool] = []

    def of(peak: int, mode: bool) -> Callable[[], Prediction]:
        def answer() -> Prediction:
            asked.append(mode)
            return Prediction(100, {"optimisation": peak - 100})

        return answer

    both = {False: of(1000, False), True: of(600, True)}
    assert fitting(1000, both)[0] is False
    assert asked == [False]
    assert fitting(999, both) == (True, Prediction(100, {"optimisation": 500}))
    assert fitting(None, both)[0] is False
    with pytest.raises(ResourceError, match=r"even in low-memory mode, but 0\.00 GiB are free; use fewer frames"):
        fitting(599, both)


def test_free_memory_is_known_on_every_system() -> None:
    assert 2**20 < available("cpu") <= psutil.virtual_memory().total  # type: ignore[operator]
    assert available("meta") is None


def group(folder: Path, version: int, limit: str, used: int, cached: int) -> None:
    """A control group's files."""
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"), 2: ("max", "current", "inactive_file")}
    most, usage, files = names[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{most}").write_text(f"{limit}\n")
    (folder / f"memory.{usage}").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{files} {cached}\n")


@pytest.mark.parametrize(
    ("lines", "version", "mount"),
    [("0::/a/b\n", 2, "sys/fs/cgroup"), ("9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n", 1, "sys/fs/cgroup/memory")],
)
def test_the_limits_of_control_groups_are_kept(tmp_path: Path, lines: str, version: int, mount: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines)
    everything = free_memory(tmp_path)
    assert everything > 10**8
    inner, none = tmp_path / mount / "a/b", {1: str(2**63 - 4096), 2: "max"}[version]
    group(inner, version, none, 10**6, 0)
    assert free_memory(tmp_path) == pytest.approx(everything, rel=0.2)
    group(inner, version, "50000000", 30_000_000, 1_000_000)
    assert free_memory(tmp_path) == 21_000_000
    group(inner.parent, version, "40000000", 35_000_000, 2_000_000)  # around it, and tighter
    assert free_memory(tmp_path) == 7_000_000
    group(inner.parent, version, "40000000", 50_000_000, 0)
    assert free_memory(tmp_path) == 0


def test_in_a_container_the_groups_path_may_be_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/docker/0123\n")
    group(tmp_path / "sys/fs/cgroup/memory", 1, "50000000", 30_000_000, 0)
    assert free_memory(tmp_path) == 20_000_000


LIMITED = """
import resource, psutil
from anyi2v.execution.limits import free_memory
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
print(free_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is not enforced, or there is none")
def test_the_limit_of_the_address_space_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert 2**24 < int(done.stdout) <= 2**25


def many(objects: int, side: float) -> Tracks:
    """Boxes of one size, and one of the whole frame."""
    small = tuple(Track(f"{o}", ((0.0, 0.0, side, side),)) for o in range(objects))
    return Tracks(64, 64, (*small, Track("all", ((0.0, 0.0, 64.0, 64.0),))))


def test_boxes_are_predicted_and_large_ones_do_not_pad_the_others() -> None:
    def predicted(tracks: Tracks | None) -> dict[str, int]:
        config = tiny_backbone().config
        return predict(config, SHORT, (8, 32, 32), tracks=tracks).passes

    none, some = predicted(None)["optimisation"], predicted(many(1, 8))
    assert some["optimisation"] > none
    with patch("anyi2v.method.crops.PART_CELLS", 2 * 8 * 32 * 32):  # two of the whole frame
        apart = predicted(many(12, 8))
    with patch("anyi2v.method.crops.PART_CELLS", 10**12):
        padded = predicted(many(12, 8))
    # the masks of all objects are padded still
    assert apart["optimisation"] - none < 0.4 * (padded["optimisation"] - none)
    assert apart["decoding"] - some["decoding"] == 11 * 8 * 32 * 32 * 4  # the masks of the result
    assert "optimisation" not in predicted(Tracks(64, 64))


def test_low_rank_components_can_be_predicted() -> None:
    method = replace(SHORT, pca_solver="lowrank")
    needed = predict(tiny_backbone().config, method, (4, 16, 16), tracks=many(1, 8))
    assert needed.passes["optimisation"] > 0


def test_the_first_parts_of_a_loop_need_as_much_as_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"linear.SMALL": 1, "feed_forward.CACHE": 2**13, "attention.MANY": 1, "attention.SCORES": 2**13}
    for name, value in small.items():
        monkeypatch.setattr(f"anyi2v.operators.cpu.{name}", value)
    lengths: list[int] = []

    def all_of_them(parts: Iterable[object], x: object) -> list[object]:
        every = [*parts]
        lengths.append(len(every))
        return every

    def predicted() -> Prediction:
        return predict(tiny_backbone().config, replace(SHORT, guidance_scale=1.0), (2, 16, 16))

    few = predicted()
    for name in ("feed_forward", "attention"):
        monkeypatch.setattr(f"anyi2v.operators.cpu.{name}.in_turn", all_of_them)
    assert predicted() == few
    assert max(lengths) > 3
