import dataclasses
import json
import re
import subprocess
import sys
import typing
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import anyi2v
from anyi2v import cli
from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.networks import build
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.backbone.sparse_control import SparseControlNetwork
from anyi2v.checkpoints.checkpoint import save
from anyi2v.checkpoints.sparse_control import save_control
from anyi2v.cli.animate_defaults import REPEATED
from anyi2v.errors import AnyI2VWarning
from anyi2v.execution import machine
from anyi2v.images.media import load_image
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import RECIPES
from anyi2v.reports.following import recorded
from anyi2v.tracks import Track, Tracks, save_tracks

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

METHOD = {"steps": 3, "inversion_stride": 100, "pca_dim": 4, "iterations": 1, "optimise_steps": 1, "patch": 2}
CONFIG = BackboneConfig(
    name="tiny",
    unet=UNetConfig(
        channels=(4, 8, 8),
        attention=(True, True, False),
        layers=1,
        context_dim=8,
        heads=2,
        groups=2,
        temporal=MotionConfig(heads=2, groups=2, max_frames=4),
    ),
    vae=VAEConfig(channels=(4, 4), layers=1, groups=2),
    text=TextConfig(width=8, layers=1, heads=2, length=6, vocab_size=5, words=("<pad>", "<bos>", "<eos>", "a", "red")),
    height=16,
    width=32,
    frames=3,
    method=METHOD,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, a sparse control network for it, an image and tracks over the image."""
    folder = tmp_path_factory.mktemp("files")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(build(CONFIG), folder / "tiny.safetensors")
        control = SparseControlNetwork(SparseControlConfig("tiny-control", unet=CONFIG.unet))
        save_control(control, folder / "control.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    track = Track("thing", ((10, 10, 40, 40), (20, 10, 50, 40)), ((20, 20),))
    save_tracks(folder / "tracks.json", Tracks(70, 50, (track,)))
    return folder


def flags(files: Path, out: Path, **changes: str) -> list[str]:
    values = {
        "image": str(files / "image.png"),
        "prompt": "a red",
        "tracks": str(files / "tracks.json"),
        "backbone": str(files / "tiny.safetensors"),
        "threads": "1",
        "out": str(out),
    } | changes
    return ["animate", *(part for key, value in values.items() for part in (f"--{key}", value))]


def parse_animate(*args: str) -> cli.Animate:
    job = cli.parse(["animate", *args])
    assert isinstance(job, cli.Animate)
    return job


def test_a_run_can_be_repeated_byte_for_byte_from_its_folder(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert cli.main([*flags(files, out), "--seed", "7", "--method.lr", "0.02"]) == 0
    said = capsys.readouterr().out
    assert f"{out / 'video.mp4'}: 3 frames in" in said
    found = recorded(json.loads((out / "run.json").read_text()))
    assert found and all(re.search(f"^  {one.name}: .*{one.verdict}$", said, re.MULTILINE) for one in found)
    assert ("check the inputs with" in said) == any(not one.follows for one in found)
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--out", str(again)]) == 0
    for name in ("video.mp4", "video.gif", "side_by_side.mp4", "condition.png", "masks.png", "loss.png"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (out, again))
    assert first.pop("timings").keys() == second.pop("timings").keys()
    assert first == second
    assert (first["seed"], first["method"]["lr"]) == (7, 0.02)
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--out", str(again / "b"), "--seed", "8"]) == 0
    assert (out / "video.mp4").read_bytes() != (again / "b" / "video.mp4").read_bytes()


@pytest.mark.parametrize("mask", ["dynamic", "static"])
def test_a_run_with_masks_and_camera_is_repeated_byte_for_byte(files: Path, tmp_path: Path, mask: str) -> None:
    pixels = np.zeros((50, 70), dtype=np.uint8)
    pixels[15:40, 12:30] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    objects = [{"name": "thing", "mask": "mask.png", "path": [[0, 0], [20, 5]]}]
    data = {"width": 70, "height": 50, "objects": objects, "camera": {"pan": [9, 0]}}
    (tmp_path / "tracks.json").write_text(json.dumps(data))
    out, again = tmp_path / "out", tmp_path / "again"
    job = flags(files, out, tracks=str(tmp_path / "tracks.json"))
    assert cli.main([*job, "--method.mask", mask]) == 0
    (tmp_path / "mask.png").unlink()
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--out", str(again)]) == 0
    for name in ("video.gif", "side_by_side.gif", "masks.png", "loss.png"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    first, second = (json.loads((folder / "run.json").read_text())["tracks"] for folder in (out, again))
    assert first == second
    assert len(first["objects"]) == 5 and first["objects"][0]["mask"]["size"] == [16, 32]


@pytest.mark.parametrize(("gain", "dtype"), [(2.0, "bfloat16"), (1.0, "float32")])
def test_half_precision_is_chosen_where_products_gain_from_it(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gain: float,
    dtype: str,
) -> None:
    seconds = {torch.float32: gain, torch.bfloat16: 1.0}
    monkeypatch.setattr(machine, "_product_seconds", seconds.__getitem__)
    assert cli.main(flags(files, tmp_path / "auto")) == 0
    assert f"; computing in {dtype}, which is faster here" in capsys.readouterr().err
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["dtype"] == dtype
    assert cli.main(flags(files, tmp_path / "named", dtype=dtype)) == 0
    assert "computing in" not in capsys.readouterr().err
    assert (tmp_path / "auto" / "video.gif").read_bytes() == (tmp_path / "named" / "video.gif").read_bytes()
    assert machine.fast_dtype("meta") == torch.float32


def test_a_changed_backbone_is_not_repeated(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(build(CONFIG), tmp_path / "other.safetensors")
    record = {
        **{"prompt": "a", "negative_prompt": "", "seed": 0, "frames": 3, "fps": 8, "width": 32, "height": 16},
        **{"device": "cpu", "dtype": "float32", "threads": 1, "method": METHOD},
        "backbone": {"name": str(tmp_path / "other.safetensors"), "sha256": "0" * 64},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert cli.main(["animate", "--repeat", str(tmp_path / "run.json"), "--out", str(tmp_path / "out")]) == 2
    assert "is not the file that" in capsys.readouterr().err


def test_defaults_follow_recipe_backbone_and_repeat(files: Path, tmp_path: Path) -> None:
    backbone = str(files / "tiny.safetensors")
    paper = parse_animate("--backbone", backbone)
    assert paper.method == MethodConfig.from_dict(METHOD)
    official = parse_animate("--recipe=official", "--backbone", backbone, "--method.mask", "none")
    assert official.method == dataclasses.replace(MethodConfig.official(), **METHOD, mask="none")
    record = {
        **{"prompt": "a", "negative_prompt": "b", "seed": 4, "frames": 3, "fps": 8, "width": 32, "height": 16},
        **{"device": "cpu", "dtype": "float32", "threads": 1, "method": {"lr": 0.5}},
        "backbone": {"name": backbone, "sha256": ""},
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    job = parse_animate("--repeat", str(path), "--prompt", "c")
    assert (job.image, job.tracks, job.backbone) == (tmp_path / "condition.png", path, backbone)
    assert (job.prompt, job.negative_prompt, job.seed, job.threads) == (("c",), "b", 4, 1)
    assert job.method == MethodConfig(lr=0.5)
    other = parse_animate("--repeat", str(path), "--recipe", "official")
    assert other.method == dataclasses.replace(MethodConfig.official(), **METHOD)


def test_a_recipe_says_what_the_backbone_has_otherwise(files: Path) -> None:
    backbone = str(files / "tiny.safetensors")
    with pytest.warns(AnyI2VWarning, match=r"overrides settings of recipe official: .*steps=.*; --no-b") as said:
        parse_animate("--recipe", "official", "--backbone", backbone)
    assert len(said) == 1
    text = str(said[0].message)
    official = MethodConfig.official().to_dict()
    assert all((f"{key}=" in text) == (value != official[key]) for key, value in METHOD.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strict = parse_animate("--recipe", "official", "--backbone", backbone, "--no-backbone-settings", "--seed", "2")
        assert parse_animate("--backbone", backbone).method != MethodConfig()
    assert strict.method == MethodConfig.official()
    assert not strict.backbone_settings


def other_value(name: str, hint: Any, default: Any) -> tuple[list[str], Any]:
    """Flags that set a field to another value than its default, and that value."""
    flag = f"--method.{name.replace('_', '-')}"
    if hint is bool:
        return [flag if not default else flag.replace("method.", "method.no-")], not default
    if typing.get_origin(hint) is Literal:
        value = next(option for option in typing.get_args(hint) if option != default)
        return [flag, value], value
    if typing.get_origin(hint) is tuple:
        return ([flag, "2", "3"], (2, 3)) if int in typing.get_args(hint) else ([flag, "x", "y"], ("x", "y"))
    if hint == str | None:
        return [flag, "x"], "x"
    value = 0.5 if hint is float else 3
    return [flag, str(value)], value


@pytest.mark.parametrize("name", typing.get_type_hints(MethodConfig))
def test_every_setting_of_the_method_is_a_flag(files: Path, name: str) -> None:
    default = MethodConfig.from_dict(METHOD)
    hint = typing.get_type_hints(MethodConfig)[name]
    args, value = other_value(name, hint, getattr(default, name))
    if name == "steps":
        args, value = ["--method.steps", "11"], 11
    job = parse_animate("--backbone", str(files / "tiny.safetensors"), *args)
    assert job.method == dataclasses.replace(default, **{name: value})
    assert job.method != default


def test_pca_can_be_switched_off(files: Path) -> None:
    job = parse_animate("--backbone", str(files / "tiny.safetensors"), "--method.pca-dim", "None")
    assert job.method.pca_dim is None


def test_recipes_are_the_flags_choices() -> None:
    hint = typing.get_type_hints(cli.Animate)["recipe"]
    assert set(typing.get_args(hint)) == set(RECIPES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "micr"}, r"no backbone 'micr': .* the shipped backbones are micro"),
        ({"image": "absent.png"}, r"cannot read image absent.png: No such file"),
        ({"tracks": "absent.json"}, r"cannot read absent.json: No such file"),
        ({"repeat": "absent.json"}, r"cannot read absent.json: No such file"),
        ({"repeat": "."}, r"cannot read run.json: No such file"),
        ({"example": "phot"}, r"no example 'phot'; the closest are photo \(all: edge, depth, .*, layers\)"),
        ({"prompt": "a blue"}, r"the word 'blue' is not among"),
        ({"device": "nix"}, r"--device nix cannot be used: "),
        ({"threads": "0"}, r"--threads 0 is not allowed"),
        ({"frames": "5"}, r"5 frames requested"),
        ({"width": "33"}, r"the video's size is 33x16 px"),
        ({"method.align": "up_blocks.1.x"}, r"up_blocks\.1\.x"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    out = tmp_path / "out"
    assert cli.main(flags(files, out, **changes)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"anyi2v: error: .*{message}.*\n", error)
    assert not out.exists()
    assert not list(tmp_path.iterdir())


def test_every_prompt_has_a_run_and_finished_ones_are_kept(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    job = [*flags(files, out), "--prompt", "a red red"]
    assert cli.main(job) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"page of all prompts: {out / 'index.html'}"
    assert (out / "index.html").is_file()
    first, second = sorted(path for path in out.iterdir() if path.is_dir())
    assert (first.name, second.name) == ("01-a-red", "02-a-red-red")
    assert load_image(out / "prompts.png").shape[0] == 3
    prompts = [json.loads((folder / "run.json").read_text())["prompt"] for folder in (first, second)]
    assert prompts == ["a red", "a red red"]
    alone = tmp_path / "alone"
    assert cli.main([*flags(files, alone)]) == 0
    assert (alone / "video.mp4").read_bytes() == (first / "video.mp4").read_bytes()
    # a third prompt: only its run is new
    before = (first / "run.json").stat().st_ino
    assert cli.main([*job, "--prompt", "a a"]) == 0
    assert (first / "run.json").stat().st_ino == before
    assert (out / "03-a-a" / "report.html").exists()
    # each can be repeated, with another prompt too
    again = ["animate", "--repeat", str(second), "--out", str(tmp_path / "again")]  # the folder stands for its run.json
    assert cli.main(again) == 0
    assert (second / "video.mp4").read_bytes() == (tmp_path / "again" / "video.mp4").read_bytes()
    assert cli.main([*again, "--prompt", "a a", "--overwrite"]) == 0
    assert json.loads((tmp_path / "again" / "run.json").read_text())["prompt"] == "a a"
    capsys.readouterr()
    assert cli.main([*job, "--prompt", "a red"]) == 2
    assert "prompt 'a red' is given twice" in capsys.readouterr().err
    assert cli.main([*job[:-2], "--prompt", "a blue ball", "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_long_prompts_are_refused_or_cut_with_a_notice(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(["a red"] * 40)
    job = flags(files, tmp_path / "out", prompt=long)
    assert cli.main(job) == 2
    assert "82 tokens, including begin and end, but the text tower takes at most" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main([*job, "--truncate-prompt"]) == 0
    assert "prompt too long: '" in capsys.readouterr().err
    kept = json.loads((tmp_path / "out" / "run.json").read_text())["prompt"]
    assert long.startswith(kept) and kept != long


def test_image_and_prompt_are_needed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["animate", "--backbone", str(files / "tiny.safetensors")]) == 2
    assert "animate needs --image and --prompt, or --example edge, or --repeat run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "is not the record of a run: the key 'prompt' is missing"),
        ({key: 0 for key in ("prompt", *REPEATED)} | {"backbone": 3}, "is not the record of a run: values differ"),
        (
            {key: 0 for key in ("prompt", *REPEATED)} | {"backbone": {"name": "micro"}, "method": {"lrr": 1}},
            "run.json: the method has no setting 'lrr'; the closest are lr,",
        ),
    ],
)
def test_unusable_records_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any], message: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    assert cli.main(["animate", "--repeat", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_without_tracks_the_free_motion_is_said_and_not_that_it_is_not_optimised(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = flags(files, tmp_path / "out", **{"method.optimise-steps": "90", "method.steps": "2"})
    args.remove("--tracks")
    args.remove(str(files / "tracks.json"))
    assert cli.main(args) == 0
    printed = capsys.readouterr().err
    assert printed.startswith("no --tracks: only the layout of the first frame is controlled, the motion is not\n")
    assert "optimise_steps" not in printed


def test_what_is_neither_run_nor_checkpoint_cannot_be_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "nothing"]) == 2
    printed = capsys.readouterr().err
    assert "no backbone 'nothing'" in printed and "there is no folder of a run of this name either" in printed


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: cli.Inspect) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.Inspect, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "micro"])


@pytest.mark.parametrize("value", ["-1", "fast"])
def test_unusable_flags_exit_with_2_and_name_the_setting(
    files: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*flags(files, files / "out"), "--method.lr", value])
    assert caught.value.code == 2
    assert "lr" in capsys.readouterr().err


def test_inspect_prints_configuration_counts_and_points(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(files / "tiny.safetensors"), "--points"]) == 0
    out = capsys.readouterr().out
    printed, rest = out.split("\n}\n")
    assert BackboneConfig.from_json(printed + "}") == CONFIG
    counts = {part: int(count.replace(",", "")) for part, count in re.findall(r"(\w+) +([\d,]+) parameters", rest)}
    networks = build(CONFIG).networks
    expected = {name: sum(value.numel() for value in net.state_dict().values()) for name, net in networks.items()}
    assert counts == expected | {"all": sum(expected.values())}
    # three frames, latents 8 x 16, two levels from the finest: 8 channels
    assert "up_blocks.1.attentions.1.query  1x3x4x8x8\n" in rest
    tokens, heads = CONFIG.text.length, CONFIG.unet.heads_of(8)
    assert f"up_blocks.1.attentions.1.cross.probs  1x3x{heads}x32x{tokens}  on request\n" in rest
    assert rest.count("on request") == rest.count(".probs ") + rest.count(".logits ")


@pytest.mark.parametrize("command", [[], ["animate"], ["batch"], ["condition"], ["demo"], ["inspect"]])
def test_help_is_instant_and_has_examples(files: Path, command: list[str]) -> None:
    extra = ["--backbone", str(files / "tiny.safetensors"), "--recipe", "official"] if "animate" in command else []
    code = (
        "import sys; from anyi2v.cli import main\n"
        f"try: main({[*command, *extra, '--help']!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'open_clip', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", done.stdout).split())
    if not command:
        assert all(name in text for name in cli.COMMANDS)
        return
    assert f"$ anyi2v {command[0]}" in text
    if extra:
        # true defaults: of the recipe, and of the backbone
        assert re.search(
            r"--method.clustering \{per_frame,joint\} [^-]*\(default: joint\)", text.replace("2-means", "")
        )
        assert "Number of denoising steps. Source: Section 4. (default: 3)" in text


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import sys; from anyi2v.cli import main; sys.exit(main(['inspect', 'micro', '--points']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_a_pipe_that_breaks_inside_a_job_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        def run(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(cli, "parse", lambda args: Job())
    with pytest.raises(BrokenPipeError):
        cli.main([])


def test_our_warnings_are_one_line_on_stderr_and_others_stay_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Command:
        def run(self) -> None:
            warnings.warn("two\nlines", AnyI2VWarning, stacklevel=1)
            warnings.warn("from elsewhere", UserWarning, stacklevel=1)

    monkeypatch.setattr(cli, "parse", lambda args: Command())
    shown: list[type[Warning]] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, category, *_: shown.append(category))
    assert cli.main([]) == 0
    assert capsys.readouterr().err == "anyi2v: warning: two lines\n"
    assert shown == [UserWarning]


def test_the_version_is_the_packages_also_as_a_module() -> None:
    command = [sys.executable, "-m", "anyi2v", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"anyi2v {anyi2v.__version__}\n" == f"anyi2v {version('anyi2v')}\n"
