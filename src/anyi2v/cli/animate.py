"""`anyi2v animate`: its flags, their defaults, and what it does. Free of torch until it runs."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from anyi2v.backbone.config import TextConfig
from anyi2v.checkpoints.header import read_config
from anyi2v.cli.condition import ConditionFlags
from anyi2v.cli.device import Dtype, network_dtype, prepare_torch
from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.files import check_place
from anyi2v.method.config import MethodConfig, OperatorKind, SamplerName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from anyi2v.backbone.config import BackboneConfig
    from anyi2v.backbone.networks import Backbone
    from anyi2v.job import Result
    from anyi2v.pipeline import Observer
    from anyi2v.taps import Taps
    from anyi2v.tracks import Tracks


@dataclass(frozen=True)
class Animate(ConditionFlags):
    """Animate a condition image along tracks.

    Examples:
    $ anyi2v animate --image edges.png --prompt "a red circle on a navy background" --tracks tracks.json
    $ anyi2v animate --image edges.png --prompt "a blue star" --recipe official --method.lr 0.02 --out star
    $ anyi2v animate --image edges.png --prompt "a blue star" --prompt "a red star" --out sweep
    $ anyi2v animate --repeat star/run.json --out again
    """

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the video shows. Needed unless --repeat is given. May be repeated: then each prompt has a run of its own in
    a folder below --out, and those that are there already, with all settings equal, are not made again."""
    truncate_prompt: bool = False
    """Cut prompts that are too long for the text tower, instead of refusing them; what is cut is printed."""
    tracks: Path | None = None
    """File with boxes or paths over time: ours, AnyI2V's or of many other projects; see `anyi2v tracks check`.
    Without it nothing is moved."""
    out: Path = Path("out")
    """Folder for video, pictures and run.json."""
    backbone: str = "micro"
    """Name of a shipped backbone, or a converted .safetensors file."""
    embedding: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """File of textual inversion, whose name (diffusers' token, or the file's name) may then be a word of the prompts.
    May be repeated."""
    recipe: Literal["paper", "official"] = "paper"
    """Preset of all --method flags: the paper's equations, or the published code. The backbone's own settings lie on
    top of it, and --method flags on top of both."""
    backbone_settings: bool = True
    """Whether the backbone's own settings replace those of the recipe; micro is too small for some of the paper's."""
    repeat: Path | None = None
    """run.json of an earlier run: its values are the defaults, its condition.png lies beside it. Both must be as they
    were written; other versions are said."""
    sampler: SamplerName = "ddim"
    """How the latents move from one noise level to the next: DDIM, or DPM-Solver++(2M), which needs fewer steps."""
    seed: int = 0
    """Of the initial noise; equal seed, device and threads give equal bytes, but for rounding on a GPU."""
    frames: int | None = None
    """Frames of the video; None: the backbone's."""
    fps: int | None = None
    """Frames per second of the video; None: the backbone's. Some backbones move differently for it."""
    negative_prompt: str = ""
    """What the video does not show."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "auto"
    """Of the networks; latents and losses are float32 always. auto: 16 bits where the device is faster in them, which
    is measured; what was chosen is printed and recorded."""
    operators: OperatorKind = "fast"
    """How the networks compute: by the fastest implementations, or by the formulas in plain PyTorch alone."""
    threads: int | None = None
    """CPU threads; None: PyTorch's choice."""
    low_memory: bool = False
    """Take less memory and more time. Chosen by itself where the job would not fit otherwise."""
    cache: Path | None = None
    """Folder where inverted images are kept, in anyi2v-inversions, 4 GiB of them: other tracks on the same image and
    prompt then need no inversion."""
    overwrite: bool = False
    """Replace the files of a former run in the folder; others stay."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Settings of the method; each says where it comes from."""

    def run(self) -> None:
        """Computes and writes the runs; prints where they are and how long they took."""
        if (self.image is None and not self.layer) or not self.prompt:
            raise InputError("animate needs --image and --prompt, or --repeat run.json")
        if len(self.prompt) == 1:
            self._run_one()
        else:
            self._run_sweep()

    def _run_one(self) -> None:
        from anyi2v.reports.folder import check_out, claimed

        check_out(self.out, overwrite=self.overwrite)  # before anything is made
        with claimed(self.out):
            check_out(self.out, overwrite=self.overwrite)  # another process may have been faster
            self._write([self.out], self.prompt)

    def _run_sweep(self) -> None:
        from anyi2v.reports.folder import claimed
        from anyi2v.reports.sweep import check_sweep, sweep_folders, write_sweep

        folders = sweep_folders(self.out, self.prompt)
        check = partial(check_sweep, self.out, self._wanted(folders), overwrite=self.overwrite)
        check()
        with ExitStack() as claims:
            claims.enter_context(claimed(self.out))
            missing = check()
            for folder in missing:
                claims.enter_context(claimed(folder))
            self._write(missing, [folders[folder] for folder in missing])
            print(f"all prompts beside each other: {write_sweep(self.out, self.prompt)}")

    def _write(self, folders: Sequence[Path], prompts: Sequence[str]) -> None:
        """Computes and writes a run per prompt."""
        from anyi2v.reports import writing as report
        from anyi2v.taps import no_taps

        impossible = report.impossible_outputs() if folders else {}
        for out, (backbone, image, result) in zip(folders, self.results(prompts, no_taps), strict=True):
            dtype = str(backbone.dtype).removeprefix("torch.")
            flags = {"backbone": self.backbone, "device": self.device, "dtype": dtype, "impossible": impossible}
            report.write_run(out, result, image, **flags, embeddings=self.embedding, overwrite=self.overwrite)
            video = out / ("video.mp4" if "video.mp4" not in impossible else "video.gif")
            total = sum(result.timings.values())
            print(f"{video}: {len(result.video)} frames in {total:.1f} s; see {out / 'report.html'}")

    def _wanted(self, folders: Mapping[Path, str]) -> "dict[Path, dict[str, Any]]":
        """For each run of a sweep what its record must say to be the one that is asked for."""
        from anyi2v.reports.record import inputs

        config = read_config(self.backbone)
        image, tracks = self._inputs(config)
        embeddings = self._embeddings(config.text, [*folders.values(), self.negative_prompt])
        same = {name: getattr(self, name) for name in ("device", "low_memory", "threads")}
        if self.dtype != "auto":
            same["dtype"] = self.dtype
        if self.operators != "fast":
            same["operators"] = self.operators
        # what is not asked for may be as it was
        same = {name: value for name, value in same.items() if value not in (None, False)}
        return {
            folder: same
            | inputs(
                backbone=self.backbone,
                image=image,
                tracks=tracks,
                prompt=self._fitting(prompt, embeddings),
                negative_prompt=self.negative_prompt,
                seed=self.seed,
                frames=config.frames if self.frames is None else self.frames,
                fps=config.fps if self.fps is None else self.fps,
                config=self.method,
                embeddings=self.embedding,
                parts={} if self.sampler == "ddim" else {"sampler": self.sampler},
            )
            for folder, prompt in folders.items()
        }

    def _inputs(self, config: "BackboneConfig") -> "tuple[Tensor, Tracks]":
        """The condition at the video's size, and the tracks over it."""
        from anyi2v.images import media
        from anyi2v.images.conditions import load_condition

        image, fit = load_condition(**self.condition(config))
        return image, media.load_placed(self.tracks, fit)

    def results(
        self, prompts: Sequence[str], taps: "Taps", observe: "Observer | None" = None
    ) -> "Iterator[tuple[Backbone, Tensor, Result]]":
        """For each prompt the networks, the image at the video's size, and the result of the job that was watched."""
        if not prompts:
            return

        from anyi2v.backbone.text import tokenize
        from anyi2v.checkpoints.checkpoint import load
        from anyi2v.pipeline import animate
        from anyi2v.reports.record import check_repeat
        from anyi2v.samplers import SAMPLERS

        if self.cache:
            check_place(self.cache)
        prepare_torch(self.device, self.threads)
        if self.repeat:
            files: dict[str, Any] = {name: getattr(self, name) for name in ("backbone", "image", "tracks")}
            check_repeat(self.repeat, **files, embeddings=self.embedding, device=self.device)
        config = read_config(self.backbone)
        embeddings = self._embeddings(config.text, [*prompts, self.negative_prompt])
        prompts = [self._fitting(prompt, embeddings) for prompt in prompts]
        tokenize(config.text, [*prompts, self.negative_prompt], embeddings)  # before any work
        image, tracks = self._inputs(config)
        dtype = network_dtype(self.dtype, self.device)
        low_memory = self._low_memory(image, tracks, dtype)
        if self.repeat and low_memory and not self.low_memory:
            text = f"{self.repeat} was made with more memory than is free here: in low-memory mode bytes may differ"
            warnings.warn(text, AnyI2VWarning, stacklevel=2)
        backbone = load(
            self.backbone, device=self.device, dtype=dtype, operators=self.operators, embeddings=self.embedding
        )
        for prompt in prompts:
            result = animate(
                backbone,
                image,
                prompt,
                tracks,
                config=self.method,
                seed=self.seed,
                frames=self.frames,
                fps=self.fps,
                negative_prompt=self.negative_prompt,
                cache=self.cache,
                low_memory=low_memory,
                taps=taps,
                observe=observe,
                sampler=SAMPLERS[self.sampler](),
                progress=sys.stderr.isatty(),
            )
            yield backbone, image, result

    def _low_memory(self, image: "Tensor", tracks: "Tracks", dtype: "torch.dtype") -> bool:
        """Prints the memory that the job will need; whether to run it with little, as asked for or because it must.

        Raises what `check_job` does, and ResourceError if the job does not fit at all.
        """
        import torch

        from anyi2v.backbone.networks import build
        from anyi2v.execution.memory import available, fitting, gib, predict
        from anyi2v.pipeline import check_job

        config = read_config(self.backbone)
        frames = config.frames if self.frames is None else self.frames
        with torch.device("meta"):
            shadow = build(config)
        check_job(shadow, image, self.method, frames, config.fps if self.fps is None else self.fps, self.seed)
        job = partial(
            predict,
            config,
            self.method,
            frames=frames,
            height=image.shape[1],
            width=image.shape[2],
            dtype=dtype,
            device=self.device,
            operators=self.operators,
            tracks=tracks,
        )
        modes = (True,) if self.low_memory else (False, True)
        free = available(self.device)
        low_memory, needed = fitting(free, {mode: partial(job, low_memory=mode) for mode in modes})
        note = " in low-memory mode" if low_memory else ""
        chosen = f"; computing in {dtype}, which is faster here".replace("torch.", "") if self.dtype == "auto" else ""
        print(f"memory: {needed}{note}, free {'unknown' if free is None else gib(free)}{chosen}", file=sys.stderr)
        return low_memory

    def _embeddings(self, text: TextConfig, prompts: Sequence[str]) -> "dict[str, Tensor]":
        """The embeddings of all files; warns of those that no prompt names."""
        if not self.embedding:
            return {}
        from anyi2v.backbone.prompt_syntax import used
        from anyi2v.checkpoints.embeddings import read_embeddings

        found = read_embeddings(self.embedding, text)
        if idle := sorted(found.keys() - used(prompts, found)):
            names = ", ".join(map(repr, idle))
            warnings.warn(f"no prompt has the embedding {names}, which changes nothing", AnyI2VWarning, stacklevel=2)
        return found

    def _fitting(self, prompt: str, embeddings: "Mapping[str, Tensor]") -> str:
        """The prompt, or what the text tower takes of it."""
        if not self.truncate_prompt:
            return prompt
        from anyi2v.backbone.text import shortened

        kept, cut = shortened(read_config(self.backbone).text, prompt, embeddings)
        if cut:
            print(f"prompt too long: {cut!r} is cut; the text tower sees {kept!r}", file=sys.stderr)
        return kept
