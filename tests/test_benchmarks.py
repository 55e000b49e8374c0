"""The benchmarks of speed: their arithmetic, and that they measure what they say. No time is asserted."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from anyi2v.backbone import attention
from anyi2v.backbone.feed_forward import FeedForward
from anyi2v.backbone.layers import Conv2d
from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.checkpoint import save
from anyi2v.cli.bench import BenchStages
from anyi2v.errors import InputError
from anyi2v.images.media import load_image
from anyi2v.job import Result
from anyi2v.latency import measure, scaling, stages
from anyi2v.method.config import MethodConfig
from anyi2v.operators import linear
from benchmarks import gpu_job, peers
from benchmarks.medium_job import Costs
from benchmarks.medium_profile import Profile, attention_marked

from .networks import SHORT, tiny_backbone


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert measure.spread([3.0]) == (3, 3, 3)
    assert measure.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3, 2, 4)
    assert str(measure.spread([1.0, 2.0, 3.0])) == "2 [1.5, 2.5]"
    assert str(measure.spread([0.0123456, 12.3456, 12345.6])) == "12.3 [6.18, 6179]"


def test_pieces_are_measured_in_turns() -> None:
    calls: list[str] = []
    found = measure.seconds({name: lambda name=name: calls.append(name) for name in "ab"}, budget=0, least=4)
    assert calls == list("ab" * 5)
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4}


def test_short_pieces_are_not_measured_more_often_than_tells_something() -> None:
    (found,) = measure.seconds({"a": lambda: None}, budget=60).values()
    assert len(found) == measure.MOST


def test_ratio_is_taken_from_round_to_round() -> None:
    assert measure.ratio({"a": [2.0, 40.0, 6.0], "b": [1.0, 10.0, 2.0]}, "a", "b").median == 3


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with measure.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_figures_carry_the_machine(tmp_path: Path) -> None:
    measure.write(tmp_path / "new", "some", {"value": 1.5})
    found = json.loads((tmp_path / "new" / "some.json").read_text())
    assert found["value"] == 1.5
    assert found["machine"]


@pytest.fixture(scope="module")
def medium() -> Backbone:
    return stages.prepare("medium", torch.float32)


def test_every_part_of_a_job_runs_and_is_counted_as_often_as_a_job_does_it(medium: Backbone) -> None:
    config = replace(MethodConfig.paper(), pca_solver="exact")  # the same basis in every call
    found = stages.parts(medium, config, 2, 2)
    for name, (piece, count) in found.items():
        piece()
        assert count > 0, name
    counts = {name: count for name, (_, count) in found.items()}
    assert counts["inversion, one call"] == (config.inversion_timestep - 1) // config.inversion_stride + 1
    assert counts["guided step"] + counts["guided step with injection"] == config.steps
    assert counts[scaling.ITERATION] == config.optimise_steps * config.iterations
    whole = found[scaling.ITERATION][0]()
    assert isinstance(whole, Tensor)
    for _ in range(2):  # the graph is kept from one measurement to the next
        assert torch.equal(found["optimisation: backward"][0](), whole)  # type: ignore[arg-type]


def test_the_job_of_the_benchmarks_has_the_steps_and_frames_asked_for(medium: Backbone) -> None:
    config = replace(MethodConfig.paper(), steps=2, optimise_steps=1, iterations=1, inversion_timestep=2)
    made = stages.job(medium, config, 2, 2)()
    assert isinstance(made, Result)
    assert made.config == config
    assert made.video.shape[0] == 2
    assert len(made.tracks.objects) == 2
    assert len(made.losses) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flops_of_our_own_layers_are_those_of_pytorchs(dtype: torch.dtype) -> None:
    feed_forward, norm = (layer.to(dtype).requires_grad_(False) for layer in (FeedForward(64), nn.LayerNorm(64)))
    x = torch.randn(4096, 64, dtype=dtype)
    assert measure.flops(lambda: feed_forward(x, norm))[0] == 2 * 4096 * 12 * 64**2
    convolution, maps = Conv2d(64, 64, 3, padding=1).to(dtype).requires_grad_(False), torch.randn(4, 64, 16, 16)
    assert measure.flops(lambda: convolution(maps.to(dtype)))[0] == 2 * 4 * 16**2 * 9 * 64**2


def test_flops_are_those_of_the_products() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert measure.flops(lambda: a @ b)[0] == 2 * 8 * 16 * 4
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3)
    forward = 2 * 5 * 3 * 3 * 3 * 6 * 6
    count, (gradient,) = measure.flops(lambda: torch.autograd.grad(torch.conv2d(x, weight).sum(), x))
    assert gradient.shape == x.shape
    assert count == 2 * forward  # and as much for the gradient of the input; the weight has none


def test_the_sum_of_a_job_leaves_out_what_its_iteration_contains() -> None:
    rows = [
        {"part": "guided step", "count": 3, "seconds": [2.0], "flops": 4.0},
        {"part": "optimisation: forward", "count": 5, "seconds": [100.0], "flops": 0.0},
        {"part": "optimisation: one whole iteration", "count": 2, "seconds": [1.0], "flops": 0.0},
    ]
    text = stages.report(rows, peak=4.0, job=[9.0])
    assert "One job: 8.0 s by its parts, 9 [9, 9] s from end to end" in text
    assert "75%" in text
    assert "50%" in text  # 4 FLOP in 2 s of 4 FLOP/s


def test_scaling_is_told_per_frame_pixel_step_and_image() -> None:
    part = "guided step"
    text = scaling.report(
        {
            "frames": {part: {"8": [1.0], "32": [6.0]}},
            "pixels": {part: {"64x64": [1.0], "128x64": [3.0]}},
            "objects": {part: {"1": [1.0], "8": [1.1]}},
            "steps": {"job": {"8": [1.0], "32": [3.0]}},
            "images": {"call": {"1": [2.0], "8": [8.0]}},
        }
    )
    rows = {tuple(cells[:3]): cells for cells in (line[2:-2].split(" | ") for line in text.splitlines())}
    value = {key: [cell.split(" [")[0] for cell in cells] for key, cells in rows.items()}
    assert value["frames", part, "32"][-2:] == ["6", "1.5"]
    assert value["pixels", part, "128x64"][-2:] == ["3", "1.5"]
    assert value["objects", part, "8"][-2] == "1.1"
    assert value["steps", "job", "32"][-2:] == ["3", "0.75"]
    assert value["images", "call", "8"][-2:] == ["4", "0.5"]


def test_peers_must_compute_the_same() -> None:
    x = torch.randn(5)
    peers.check(peers.Pair("same", lambda: x, lambda: x * (1 + 1e-5)))
    with pytest.raises(AssertionError, match="other: outputs differ"):
        peers.check(peers.Pair("other", lambda: x, lambda: x * 1.01))


def test_peers_are_summed_up_by_the_geometric_mean_over_unets() -> None:
    rows = [
        {"name": "unet a", "threads": 1, "ours": [1.0], "theirs": [2.0], "share_of_peak": 0.5},
        {"name": "unet b", "threads": 1, "ours": [2.0], "theirs": [1.0], "share_of_peak": 0.0},
        {"name": "pca", "threads": 1, "ours": [1.0], "theirs": [9.0], "share_of_peak": 0.0},
    ]
    assert peers.report(rows).endswith("UNet forwards: geometric mean 1.00, least 0.50")
    assert peers.report(rows[2:]).endswith(f"least {math.nan}")


def test_a_row_beside_its_peer(tmp_path: Path) -> None:
    peers.main(peers.Args(threads=(1,), only="unet tiny, 1 frame(s), motion on", budget=0, out=tmp_path))
    found = json.loads((tmp_path / "peers.json").read_text())
    (row,) = found["rows"]
    assert len(row["ours"]) == len(row["theirs"]) >= 3
    assert "unet tiny" in (tmp_path / "peers.md").read_text()
    assert load_image(tmp_path / "peers.png").shape[0] == 3
    with pytest.raises(InputError, match="no row begins with 'unheard'"):
        peers.main(peers.Args(threads=(1,), only="unheard", out=tmp_path))


def test_stages_write_table_figures_and_plot(tmp_path: Path) -> None:
    tiny, (defaults, short) = tiny_backbone(), (config.to_dict() for config in (MethodConfig(), SHORT))
    method = {key: value for key, value in short.items() if value != defaults[key]}
    save(Backbone(replace(tiny.config, method=method), tiny.unet, tiny.vae, tiny.text), tmp_path / "tiny.safetensors")
    stages.main(BenchStages(backbone=str(tmp_path / "tiny.safetensors"), frames=2, budget=0, out=tmp_path))
    found = json.loads((tmp_path / "stages.json").read_text())
    assert found["matmul_peak"] > 0
    assert all(len(row["seconds"]) >= 3 for row in found["rows"])
    assert (tmp_path / "stages.png").stat().st_size > 1000
    assert "share of matmul peak" in (tmp_path / "stages.md").read_text()


KINDS: tuple[Literal["products", "attention"], ...] = ("products", "attention")


def seconds_of(kind: Literal["products", "attention"], work: Callable[[], object]) -> float:
    with Profile(kind) as clock:
        before = clock()
        work()
        return clock() - before


def test_costs_are_those_between_the_units_of_a_stage() -> None:
    times = iter([1.0, 2.0, 2.5, 10.0, 11.0, 15.0, 16.0, 20.0])
    costs = Costs(lambda: next(times))
    costs("inversion", 0, 2)
    costs("inversion", 1, 2)
    costs("inversion", 2, 2)
    costs("denoising", 0, 1)
    costs("optimisation", 1, 1)
    costs("denoising", 1, 1)
    costs("decode", 0, 1)
    costs("decode", 1, 1)
    assert costs.spent == {"inversion": 1.5, "optimisation": 1.0, "guided steps": 4.0}


def test_the_profile_tells_products_from_attention() -> None:
    x, weight = torch.randn(512, 256), torch.randn(256, 256)
    plain = attention.attention

    def work() -> Tensor:
        y = linear(x, weight).view(2, 256, 256)
        return attention.attention(y, y, y, 8)

    with attention_marked():
        found = {kind: seconds_of(kind, work) for kind in KINDS}
    assert attention.attention is plain
    assert min(found.values()) > 0
    assert seconds_of("attention", lambda: linear(x, weight)) == 0
    assert seconds_of("products", lambda: x + 1) == 0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_bias_TNT", "products"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "products"),
        ("sm90_xmma_syr2k_l_f32f32_f32f32_f32_nt_n_tilesize128x128x8", "eigenvectors"),
        ("void laed2_par<stedc_params_<float2, float, 8, 1024, 128> >(int)", "eigenvectors"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("_attend_backward", "attention"),
        ("_norm_apply", "rest"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16> >", "rest"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert gpu_job.kind_of(kernel) == kind


def test_the_report_of_a_gpu_adds_up() -> None:
    """An iteration counts, its PCA is a part of it."""
    run = {"seconds": 3.0, "stages": {"inversion": 1.0, "decode": 2.0}, "memory": 2**31, "reserved": 2**32}
    once = {"call": 0.5, "products": 0.2, "attention": 0.1, "eigenvectors": 0.0, "rest": 0.05}
    rows = [
        {"part": part, "count": 10, "flops": 4e12, "kernels": once}
        for part in ("guided step", "optimisation: PCA", "optimisation: one whole iteration")
    ]
    text = gpu_job.report({**run, "seconds": 9.0}, [run, {**run, "seconds": 4.0}, run], run, rows, 8e14)
    assert "| together | 3.00 | 3.00 to 4.00 | 3.00 | 9.00 |" in text
    assert "| together |  | 80 | 0.10 | 4.00 | 2.00 | 0.00 | 1.00 | 10.00 |" in text
