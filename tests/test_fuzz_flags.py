"""Whatever flags and prompts say that cannot be: exit code 2, one error that names it, no work, no file."""

import contextlib
import io
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from anyi2v import cli
from anyi2v.backbone.unet import points
from anyi2v.checkpoints.checkpoint import save
from anyi2v.tracks import Track, Tracks, save_tracks

from . import foreign
from .networks import QUERIES, SHORT, WORDS, tiny_backbone

COUNT = 900
PARTS = 3

TEXTS = [
    "",
    " ",
    "x",
    "true",
    "1.2.3",
    "1;2",
    "½",
    "−1",
    "💥",
    "٣x",
    "\u202e3",
    "a\nb",
    "%s",
    "{0}",
    "é" * 200,
    "$(id)",
]
"""What is no number and no name of anything. Half a surrogate pair is what Python makes of bytes that are no text."""
UNPRINTABLE = "\udcff"
NOT_FINITE = ["nan", "inf", "-inf", "1e400", "-1e999", "NaN"]
NOT_WHOLE = [*TEXTS, *NOT_FINITE, "1.5", "1e3", "0x10", "--", "1,000"]
NOT_NUMBERS = [*TEXTS, "0x10", "1,5", "1/2"]
HUGE = [str(10**9), str(2**63), str(10**30), "9" * 400]
BELOW_0 = ["-1", "-2", "-1000", str(-(2**63)), str(-(10**30))]
LAYERS = [
    "up_blocks.9.attentions.0.query",
    "up_blocks",
    "mid",
    "é",
    " ",
    "",
    "x" * 300,
    "0",
    "up_blocks.1.resnets.0.hiden",
]
NO_FILES = [
    "nix",
    "nix/nix",
    "💥",
    " a ",
    "é\u202eb",
    "x" * 300,
    "x" * 5000,
    "folder",
    "empty",
    "text.txt",
    "image.png/x",
]
"""Paths of which none is a file that any flag can use: absent, too long for the system, a folder, of no use."""
NOWHERE = ["text.txt", "folder", "image.png/out", "text.txt/a/b", "x" * 300, "a/" + "x" * 300, "/dev/null/out"]
"""Folders where no run can be written."""


@dataclass(frozen=True)
class Wrong:
    """Flags that make a command unusable, and what the error must say one of."""

    flags: list[str]
    said: tuple[str, ...]


Maker = Callable[[random.Random], Wrong]


def one(flag: str, *pools: list[str], said: tuple[str, ...] = ()) -> Maker:
    """One flag with a value out of the pools; the error must name flag, value, or one of `said`."""
    values = [value for pool in pools for value in pool]
    name = flag.lstrip("-").rpartition(".")[2]

    def make(pick: random.Random) -> Wrong:
        value = pick.choice(values)
        flags = [f"{flag}={value}"] if value.startswith("-") or pick.random() < 0.3 else [flag, value]
        parts = [part for part in value.split(":") if len(part) > 2]
        return Wrong(flags, (name, name.replace("-", "_"), value, *parts, *said))

    return make


def several(flag: str, number: int, *pools: list[str], good: str = "1", said: tuple[str, ...] = ()) -> Maker:
    """A flag of `number` values, one of them out of the pools."""
    values = [value for pool in pools for value in pool if not value.startswith("-")]
    name = flag.lstrip("-")

    def make(pick: random.Random) -> Wrong:
        row = [good] * number
        row[pick.randrange(number)] = value = pick.choice(values)
        return Wrong([flag, *row], (name, value, *said))

    return make


def prompt(flag: str) -> Maker:
    """Words of which one is unknown at least, or too many."""
    unknown = [
        "green",
        "<bos>",
        "redball",
        "a,",
        "💥",
        "\u202ered",
        UNPRINTABLE,
        "\x1b[31m",
        "é" * 3000,
        "-",
        "%s",
        "{}",
    ]

    def make(pick: random.Random) -> Wrong:
        words: list[str] = pick.choices(WORDS[3:], k=pick.choice((0, 1, 2, 3, 9, 500)))
        if len(words) < 9 or pick.random() < 0.5:
            words.insert(pick.randint(0, len(words)), pick.choice(unknown) + pick.choice(["", "x", "1", "ß"]))
        return Wrong([f"{flag}={pick.choice([' ', '  ', chr(10)]).join(words)}"], ("prompt",))

    return make


def fixed(flags: list[str], *said: str) -> Maker:
    """A combination that is wrong as a whole."""
    return lambda pick: Wrong(flags, said)


def choices(flag: str, *known: str) -> Maker:
    """A flag that takes one of the known words."""
    near = [word.upper() for word in known] + [f"{word} " for word in known] + [word[:-1] for word in known]
    return one(flag, TEXTS, near, HUGE, said=("choice",))


def unknown_flag(pick: random.Random) -> Wrong:
    name = pick.choice(
        ["--sed", "--promt", "--method.lrr", "--method", "--Seed", "--é", "--fr ames", "-x", "--no-seed"]
    )
    return Wrong([name, "3"], (name,))


def missing_value(pick: random.Random) -> Wrong:
    flag = pick.choice(["--seed", "--frames", "--image", "--tracks", "--fps", "--method.lr", "--camera", "--dtype"])
    return Wrong([flag], (flag,))


ANIMATE: list[Maker] = [
    one("--seed", NOT_WHOLE, [str(2**64), str(-(2**64)), *HUGE[2:]]),
    one("--frames", NOT_WHOLE, BELOW_0, HUGE, ["0", "9"]),
    one("--fps", NOT_WHOLE, BELOW_0, HUGE, ["0", "101"], said=("frames per second",)),
    one("--width", NOT_WHOLE, BELOW_0, HUGE, ["0", "1", "17"], said=("px", "size")),
    one("--height", NOT_WHOLE, BELOW_0, HUGE, ["0", "1", "17"], said=("px", "size")),
    one("--threads", NOT_WHOLE, BELOW_0, HUGE, ["0"]),
    one("--device", TEXTS, ["nix", "cuda:99", "cpu:7", "meta", "cpu:-1", "CPU", "cuda:", "gpu", "1"], said=("device",)),
    one("--image", NO_FILES),
    one("--tracks", NO_FILES, ["image.png", "tiny.safetensors", "half.json"]),
    one(
        "--layer",
        [f"{path}:mask.png" for path in NO_FILES],
        ["image.png", "a:b", "image.png:nix", ":", ":a", "a:"],
        said=("cannot read", "not a readable image"),
    ),
    one("--backbone", NO_FILES, TEXTS, ["Micro", "image.png", "tracks.json"]),
    one("--repeat", NO_FILES, ["image.png", "tracks.json", "tiny.safetensors"]),
    one("--out", NOWHERE),
    one("--cache", ["text.txt", "image.png/x", "x" * 300]),
    one("--embedding", NO_FILES, ["image.png", "tiny.safetensors", "half.json"]),
    *[prompt("--prompt")] * 6,
    *[prompt("--negative-prompt")] * 3,
    choices("--recipe", "paper", "official"),
    choices("--fit", "crop", "pad", "stretch"),
    choices("--extract", "edges", "hed"),
    choices("--render", "shaded", "depth", "normal"),
    choices("--up", "y", "z"),
    choices("--dtype", "float32", "bfloat16", "float16"),
    one("--fov", NOT_NUMBERS, NOT_FINITE, BELOW_0, HUGE, ["0", "0.5", "151"]),
    several("--camera", 3, NOT_NUMBERS, NOT_FINITE, HUGE, said=("azimuth", "elevation", "distance")),
    several("--background", 3, NOT_NUMBERS, NOT_FINITE, HUGE, ["1.5", "2"], good="0.5"),
    unknown_flag,
    missing_value,
    fixed(["--prompt", "a red ball"], "given twice"),
    fixed(["--method.align", "--method.iterations", "2"], "align"),
    fixed(["--method.align", QUERIES[0], QUERIES[0]], "twice"),
    fixed(["--method.inject-query", QUERIES[0], QUERIES[0]], "twice"),
    fixed(["--frames", "9", "--method.window", "9"], "window=9"),
    fixed(["--method.inversion-stride", "7"], "stride 7"),
    fixed(["--method.inject-query", "up_blocks.1.resnets.0.hidden"], "up_blocks.1.resnets.0.hidden"),
    fixed(["--method.align", "up_blocks.1.attentions.0.cross.key"], "up_blocks.1.attentions.0.cross.key"),
]
METHOD: list[Maker] = [
    one("--method.steps", NOT_WHOLE, BELOW_0, HUGE, ["0", "1001"], said=("steps",)),
    one("--method.guidance-scale", NOT_NUMBERS, NOT_FINITE, BELOW_0),
    one("--method.eta", NOT_NUMBERS, NOT_FINITE, BELOW_0, ["1.01", "1e9"]),
    one("--method.window", NOT_WHOLE, BELOW_0, HUGE, ["0", "9"]),
    one("--method.inversion-timestep", NOT_WHOLE, BELOW_0, HUGE, ["0", "1000"], said=("timestep",)),
    one("--method.inversion-stride", NOT_WHOLE, BELOW_0, HUGE, ["0", "3"], said=("stride",)),
    one("--method.patch", NOT_WHOLE, BELOW_0),
    one("--method.inject-steps", NOT_WHOLE, BELOW_0),
    one("--method.optimise-steps", NOT_WHOLE, BELOW_0),
    one("--method.iterations", NOT_WHOLE, BELOW_0),
    one("--method.lr", NOT_NUMBERS, NOT_FINITE, BELOW_0),
    one("--method.weight-decay", NOT_NUMBERS, NOT_FINITE, BELOW_0),
    one("--method.pca-dim", NOT_WHOLE, BELOW_0, ["0"]),
    one("--method.inject-hidden", LAYERS, said=("hook point",)),
    one("--method.inject-query", LAYERS, said=("hook point",)),
    one("--method.align", LAYERS, said=("hook point",)),
    choices("--method.inversion", "ddim", "noise"),
    choices("--method.pca-solver", "exact", "lowrank"),
    choices("--method.mask", "dynamic", "static", "none"),
    choices("--method.clustering", "per_frame", "joint"),
    choices("--method.first-frame-mask", "per_object", "shared"),
    choices("--method.anchors", "attached", "box_index"),
    choices("--method.normalise", "per_object", "all_objects"),
    choices("--method.optimiser-state", "step", "iteration"),
    choices("--method.first-box", "clip", "stretch"),
]


def command(words: str, *makers: Maker) -> list[Maker]:
    """Other commands: the words come first."""

    def with_words(maker: Maker) -> Maker:
        def make(pick: random.Random) -> Wrong:
            wrong = maker(pick)
            return Wrong([*words.split(), *wrong.flags], wrong.said)

        return make

    return list(map(with_words, makers))


def positional(*pools: list[str], said: tuple[str, ...] = ()) -> Maker:
    values = [value for pool in pools for value in pool]

    def make(pick: random.Random) -> Wrong:
        value = pick.choice(values)
        return Wrong([value], (value, *said))

    return make


BENCH = "bench micro --out new"
OTHERS: list[Maker] = [
    *command("", positional([text for text in TEXTS if text.strip()] + ["Animate", "bench x", "tracks x", "--seed"])),
    *command("tracks", positional(["x", "Show", "💥", "--file"])),
    *command("bench", positional(["x", "Micro", "💥", "--out"])),
    *command("condition", positional(NO_FILES)),
    *command("condition image.png", one("--out", ["c.jpg", "c", "c.PNGG", "text.txt/c.png", "folder"], said=(".png",))),
    *command("condition image.png", one("--backbone", NO_FILES), one("--tracks", NO_FILES)),
    *command("condition image.png", one("--width", NOT_WHOLE, BELOW_0, HUGE, ["0", "17"], said=("px", "size"))),
    *command("inspect", positional(NO_FILES, ["Micro"])),
    *command("inspect micro", one("--layers", LAYERS), one("--steps", NOT_WHOLE, BELOW_0, ["3"])),
    *command("inspect micro", one("--frames", NOT_WHOLE, BELOW_0, ["3"]), unknown_flag),
    *command("inspect run", one("--layers", LAYERS, ["9.9", "1.0 "], said=("layer",)), fixed(["--points"], "--points")),
    *command("inspect run", one("--steps", NOT_WHOLE, BELOW_0, HUGE, ["4"], said=("step",))),
    *command("inspect run", one("--frames", NOT_WHOLE, BELOW_0, HUGE, ["0", "5"], said=("frame",))),
    *command("tracks check", positional(NO_FILES, ["image.png", "tiny.safetensors"])),
    *command("tracks check tracks.json", one("--backbone", NO_FILES)),
    *command("tracks check tracks.json", several("--size", 2, NOT_WHOLE, HUGE, ["0"], said=("width", "height"))),
    *command("tracks check tracks.json", several("--box-size", 2, NOT_NUMBERS, NOT_FINITE, ["0"], said=("box size",))),
    *command("tracks show tracks.json --out new.png", one("--image", NO_FILES)),
    *command("tracks show tracks.json --image image.png", one("--out", ["text.txt/c.png", "folder"])),
    *command("tracks convert tracks.json --out new --to own", one("--frames", NOT_WHOLE, BELOW_0, ["0", *HUGE])),
    *command("tracks convert tracks.json --out new", choices("--to", "anyi2v", "own")),
    *command("tracks convert tracks.json --to own", one("--out", ["text.txt/c", "folder"])),
    *command(
        "convert --out new.safetensors", one("--base", NO_FILES, ["image.png", "tracks.json", "tiny.safetensors"])
    ),
    *command(
        "convert --base sd.safetensors",
        one("--out", ["new", "new.ckpt", "new.safetensor", "text.txt/new.safetensors"], said=("text.txt",)),
    ),
    *command("convert --base sd.safetensors", fixed([], "--out"), fixed(["--inspect", "sd.safetensors"], "--inspect")),
    *command("convert", fixed([], "--base"), one("--inspect", NO_FILES)),
    *command("convert --base sd.safetensors --out sd.safetensors", fixed([], "also a source")),
    *(
        maker
        for flag in ("--motion-module", "--vae", "--text", "--vocab", "--schedule")
        for maker in command("convert --base sd.safetensors --out new.safetensors", one(flag, NO_FILES, ["image.png"]))
    ),
    *(
        maker
        for flag in ("--lora", "--motion-lora", "--adapter")
        for maker in command(
            "convert --base sd.safetensors --out new.safetensors",
            one(flag, NO_FILES, ["sd.safetensors:x", "sd.safetensors:nan", "sd.safetensors:", ":1", "image.png:0.5"]),
        )
    ),
    *command(
        "convert --base sd.safetensors --out new.safetensors",
        one("--frames", NOT_WHOLE, BELOW_0, ["0"]),
        one("--fps", NOT_WHOLE, BELOW_0, ["0"], said=("frames per second",)),
        choices("--dtype", "fp16", "bf16", "fp32"),
        choices("--lora-alpha", "file", "ignored"),
        choices("--motion-version", "v1", "v2", "v3"),
        choices("--motion-norm", "frame", "clip"),
    ),
    *command(
        BENCH,
        one("--cases", NOT_WHOLE, BELOW_0, HUGE, ["0"]),
        one("--workers", NOT_WHOLE, BELOW_0, HUGE, ["0"]),
        one("--seed", NOT_WHOLE, BELOW_0, HUGE[1:]),
        one("--backbone", NO_FILES),
        one("--ablate", TEXTS, ["table 9"], said=("ablations",)),
        one(
            "--set", ["lr", "lr=", "lr=x", "=1", "lrr=1", "lr=-1", "lr=nan", "steps=0", 'mask="x"', "steps=[1]", "💥=1"]
        ),
        choices("--kind", "plain", "two objects", "pan"),
        choices("--recipe", "paper", "official"),
    ),
    *command("bench micro", one("--out", ["folder", "text.txt", "text.txt/x", "x" * 300])),
    *command(
        "bench backbone --out new.json", one("--cases", NOT_WHOLE, BELOW_0, HUGE, ["0"]), one("--backbone", NO_FILES)
    ),
    *command("bench backbone --out new.json", one("--workers", NOT_WHOLE, BELOW_0, HUGE, ["0"])),
    *command("bench backbone --out new.json", one("--seed", NOT_WHOLE, BELOW_0, HUGE[1:])),
    *(
        maker
        for name in ("stages", "scaling", "peers")
        for maker in command(
            f"bench {name} --out new",
            one("--threads", NOT_WHOLE, BELOW_0, HUGE, ["0"]),
            one("--budget", NOT_NUMBERS, NOT_FINITE, BELOW_0),
            *([] if name == "peers" else [one("--backbone", NO_FILES), choices("--dtype", "float32", "bfloat16")]),
        )
    ),
    *command("bench stages --out new", one("--objects", NOT_WHOLE, BELOW_0, HUGE, ["0", "10"])),
    *command("bench stages --out new", one("--frames", NOT_WHOLE, BELOW_0, HUGE, ["0"])),
    *command("demo", one("--backbone", NO_FILES), one("--out", ["text.txt", "text.txt/x", "taken", "x" * 300])),
    fixed(["animate"], "--image"),
    fixed(["animate", "--image", "image.png", "--backbone", "tiny.safetensors"], "--prompt"),
    fixed(["animate", "--prompt", "a red", "--backbone", "tiny.safetensors"], "--image"),
    fixed(["condition"], "image"),
]


def wrongs() -> Iterator[Wrong]:
    """`COUNT` different ones: flags of animate, of its method, and of other commands in turn."""
    pick, seen = random.Random(0), set[tuple[str, ...]]()
    base = ["animate", "--backbone", "tiny.safetensors", "--image", "image.png", "--tracks", "tracks.json"]
    base += ["--prompt", "a red ball", "--threads", "1", "--out", "new"]
    for number in itertools.count():
        kinds = (ANIMATE, METHOD, OTHERS)[number % 3]
        wrong = kinds[number // 3 % len(kinds)](pick)
        if len(seen) == COUNT:
            return
        if (*wrong.flags,) not in seen:
            seen.add((*wrong.flags,))
            yield wrong if kinds is OTHERS else Wrong([*base, *wrong.flags], wrong.said)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: everything that the flags name and that is there."""
    monkeypatch.chdir(tmp_path)
    backbone = tiny_backbone()
    save(backbone, Path("tiny.safetensors"))
    Image.fromarray(np.full((20, 20, 3), 200, dtype=np.uint8)).save("image.png")
    Image.fromarray(np.full((20, 20), 255, dtype=np.uint8)).save("mask.png")
    save_tracks("tracks.json", Tracks(20, 20, (Track("ball", ((2, 2, 9, 9), (8, 8, 16, 16))),)))
    for name in ("folder", "taken/edge", "run"):
        Path(name).mkdir(parents=True)
    for name in ("folder/mine", "taken/edge/mine", "empty"):
        Path(name).touch()
    Path("text.txt").write_text("once upon a time")
    record = {
        **{"prompt": "a red", "negative_prompt": "", "seed": 0, "frames": 4, "fps": 8, "width": 16, "height": 16},
        **{"device": "cpu", "dtype": "float32", "threads": 1, "method": SHORT.to_dict()},
        "backbone": {"name": "tiny.safetensors", "sha256": ""},
    }
    Path("run/run.json").write_text(json.dumps(record))
    Path("half.json").write_text(json.dumps({"prompt": "a"}))
    save_file({key: tensor.contiguous() for key, tensor in foreign.ldm().items()}, "sd.safetensors")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may get so far as to predict memory, load a backbone, start a process, measure, or write a checkpoint."""

    def begun(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("work began")

    for name in (
        "anyi2v.execution.memory.predict",
        "anyi2v.checkpoints.checkpoint.load",
        "anyi2v.micro.benchmark.bench.check",
        "anyi2v.micro.benchmark.quality.measure_backbone",
        "anyi2v.micro.benchmark.workers.load",
        "weights_converters.command.write",
        "anyi2v.latency.stages.prepare",
        "anyi2v.latency.scaling.prepare",
        "benchmarks.peers.pairs",
        "anyi2v.latency.measure.seconds",
    ):
        monkeypatch.setattr(name, begun)
    # the same for every job: making them takes most of the time before work begins
    shadow = tiny_backbone()
    known = points(shadow.unet)
    monkeypatch.setattr("anyi2v.backbone.networks.build", lambda config: shadow)
    monkeypatch.setattr("anyi2v.method.anyi2v.points", lambda unet: known)
    monkeypatch.setattr("anyi2v.cli.inspection._points", lambda config: known)


def run(flags: list[str]) -> tuple[int, str, str]:
    """Exit code, what was printed, and the error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(flags)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else -1
    return code, out.getvalue(), err.getvalue()


def told(error: str) -> str:
    """The text of the error without white space (long lines are broken); "" if it is not exactly one."""
    ours = re.fullmatch(r"anyi2v: error: (.+)\n", error)
    # what tyro says of a flag that it cannot parse: a title, a rule, and the rest
    theirs = re.fullmatch(r" [A-Z][a-z ]+\n -+ +\n(.+)", error, flags=re.DOTALL)
    found = ours or theirs
    return squeezed(found[1]) if found and "Traceback" not in error else ""


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def complaint(wrong: Wrong) -> str:
    """What is wrong about the answer to `wrong`, or ""."""
    try:
        code, out, error = run(wrong.flags)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    if code != 2 or out:
        return f"exit code {code}, printed {out!r}"
    text = told(error)
    if not 10 < len(text) < 4000 + sum(map(len, wrong.flags)):
        return f"not one readable error: {error!r}"
    names = [squeezed(name)[:40] for name in wrong.said]
    return "" if any(name and name in text for name in names) else f"names nothing: {error!r}"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("part", range(PARTS))
def test_flags_that_cannot_be(folder: Path, part: int) -> None:
    before = state(folder)
    seen: Counter[str] = Counter()
    for number, wrong in enumerate(wrongs()):
        if number % PARTS == part:
            found = complaint(wrong)
            assert not found, f"{number}: {wrong.flags}: {found}"
            seen[wrong.flags[0]] += 1
            assert state(folder) == before, f"{number}: {wrong.flags} wrote something"
    assert sum(seen.values()) == COUNT / PARTS
