"""The command `anyi2v animate`; imports torch only when it runs."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from anyi2v.backbone.config import TextConfig
from anyi2v.batch.request import Request
from anyi2v.checkpoints.header import read_config
from anyi2v.cli.condition import ConditionFlags
from anyi2v.cli.device import Dtype, asked_of, machine_of
from anyi2v.cli.messages import LOGGER, progress, remark_following, result
from anyi2v.comparators.settings import (
    SETTINGS,
    FreeTrajSettings,
    MethodName,
    Settings,
    SGI2VSettings,
    SparseCtrlSettings,
    TimeToMoveSettings,
    TrailBlazerSettings,
)
from anyi2v.errors import AnyI2VWarning, InputError, plural
from anyi2v.examples import ExampleName, example
from anyi2v.method.config import MethodConfig, OperatorKind, SamplerName

if TYPE_CHECKING:
    from torch import Tensor

    from anyi2v.backbone.networks import Backbone
    from anyi2v.batch.work import Inputs, Machine
    from anyi2v.job import Result
    from anyi2v.pipeline import Observer
    from anyi2v.taps import Taps


@dataclass(frozen=True)
class Animate(ConditionFlags):
    """Animate a condition image along tracks.

    The image shows the layout of the first frame, the prompt describes the video, and the track file says where each
    object moves. Tracks are drawn in `anyi2v studio`, or written by hand as JSON, see `anyi2v examples` and
    docs/tracks.md. The video, a page about the run and the record run.json are written to --out.

    Examples:
    $ anyi2v animate --example edge --out first
    $ anyi2v animate --image edges.png --prompt "a red circle on a navy background" --tracks tracks.json
    $ anyi2v animate --image edges.png --prompt "a blue star" --recipe official --method.lr 0.02 --out star
    $ anyi2v animate --image edges.png --prompt "a blue star" --prompt "a red star" --out sweep
    $ anyi2v animate --image edges.png --prompt "a blue star" --tracks t.json --method freetraj --freetraj.edit-steps 4
    $ anyi2v animate --repeat star/run.json --out again
    """

    example: ExampleName | None = None
    """Use the image, tracks and prompt of an example that ships with the package, see `anyi2v examples`; --tracks,
    --prompt and other flags replace its values."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Description of the video. Required unless --example or --repeat is given. May be repeated: each prompt then
    gets its own run in a subfolder of --out, and existing runs with the same settings are skipped."""
    truncate_prompt: bool = False
    """Truncate prompts that are too long for the text tower, instead of raising an error; the removed text is
    printed."""
    tracks: Path | None = None
    """File with boxes or paths over time, in our format, AnyI2V's or that of many other projects; see `anyi2v tracks
    check`. Without it, the motion is not controlled."""
    out: Path = Path("out")
    """Output folder for the video, pictures and run.json."""
    backbone: str = "micro"
    """Name of a shipped backbone, or path of a converted .safetensors file."""
    embedding: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Textual inversion file. Its name (diffusers' token, or the file's name) can be used as a word in prompts. May be
    repeated."""
    recipe: Literal["paper", "official"] = "paper"
    """Preset of all --method flags: the paper's equations, or the published code. The backbone's own settings override
    it, and --method flags override both."""
    backbone_settings: bool = True
    """Override the recipe by the backbone's own settings; micro is too small for some of the paper's."""
    repeat: Path | None = None
    """Folder of an earlier run, or its run.json, whose values become the defaults; condition.png must be there too.
    Both must be unmodified; different versions are reported."""
    sampler: SamplerName = "ddim"
    """Sampler: DDIM, or DPM-Solver++(2M), which needs fewer steps."""
    seed: int = 0
    """Seed of the initial noise. The same seed, device and threads give identical bytes, except for rounding on a
    GPU."""
    frames: int | None = None
    """Number of frames; None: the backbone's."""
    fps: int | None = None
    """Frames per second of the video; None: the backbone's. Affects the motion on backbones that embed the frame
    rate."""
    negative_prompt: str = ""
    """Description of what to avoid in the video."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "auto"
    """Dtype of the networks; latents and losses are always float32. auto: a 16-bit type if it is faster on the device,
    decided on a CPU by a quick measurement; the choice is printed and recorded."""
    operators: OperatorKind = "fast"
    """Implementation of the networks' operators: the fastest, or reference formulas in plain PyTorch."""
    threads: int | None = None
    """Number of CPU threads; None: PyTorch's default."""
    low_memory: bool = False
    """Use less memory and more time. Turned on automatically if the job would not fit otherwise."""
    cache: Path | None = None
    """Folder for a cache of inverted images (subfolder anyi2v-inversions, at most 4 GiB): further tracks on the same
    image and prompt then need no inversion."""
    overwrite: bool = False
    """Replace the files of an earlier run in the folder; other files are kept."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Settings of the method, each with its source: a place in the paper, the published code, or neither, for what this
    package adds. Other methods use those of sampling, guidance and injection."""
    method_name: Annotated[MethodName, tyro.conf.arg(name="method")] = "anyi2v"
    """Method that steers the video: AnyI2V, or another method on the same hooks; see docs/comparators.md."""
    freetraj: FreeTrajSettings = field(default_factory=FreeTrajSettings)
    """Settings of --method freetraj."""
    trailblazer: TrailBlazerSettings = field(default_factory=TrailBlazerSettings)
    """Settings of --method trailblazer."""
    sg_i2v: SGI2VSettings = field(default_factory=SGI2VSettings)
    """Settings of --method sg-i2v."""
    time_to_move: TimeToMoveSettings = field(default_factory=TimeToMoveSettings)
    """Settings of --method time-to-move."""
    sparsectrl: SparseCtrlSettings = field(default_factory=SparseCtrlSettings)
    """Settings of --method sparsectrl."""

    def run(self) -> None:
        """Compute and write the runs; print where they are and how long they took."""
        if (self.image is None and not self.layer) or not self.prompt:
            raise InputError("animate needs --image and --prompt, or --example edge, or --repeat run.json")
        if self.example is not None:
            shipped = example(self.example).source()
            if (self.image, self.layer) != (shipped.image, shipped.layer):
                raise InputError(
                    f"--example {self.example} has its own image, so --image and --layer cannot be given with it; "
                    "remove one of them"
                )
        if len(self.prompt) == 1:
            self._run_one()
        else:
            self._run_sweep()

    def _run_one(self) -> None:
        from anyi2v.reports.folder import check_out, claimed

        check_out(self.out, overwrite=self.overwrite)  # before any work
        with claimed(self.out):
            check_out(self.out, overwrite=self.overwrite)  # another process may have written it meanwhile
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
            page = write_sweep(self.out, self.prompt)
            result(page, f"page of all prompts: {page}")

    def _write(self, folders: Sequence[Path], prompts: Sequence[str]) -> None:
        """Compute and write a run per prompt."""
        if not folders:
            return
        from anyi2v.batch.work import run_job
        from anyi2v.reports.writing import impossible_outputs

        impossible = impossible_outputs()
        backbone, jobs, machine, low_memory = self._prepared(prompts)
        options: dict[str, Any] = {"low_memory": low_memory, "overwrite": self.overwrite, "impossible": impossible}
        for out, job in zip(folders, jobs, strict=True):
            made = run_job(backbone, job, machine, out, **options, progress=progress())
            video = out / ("video.mp4" if "video.mp4" not in impossible else "video.gif")
            total = sum(made.timings.values())
            result(video, f"{video}: {plural(len(made.video), 'frame')} in {total:.1f} s; see {out / 'report.html'}")
            remark_following(out)

    def observed(self, taps: "Taps", observe: "Observer") -> "tuple[Backbone, Tensor, Result]":
        """Run the first prompt's job under taps; return the backbone, the image at the video's size and the result."""
        from anyi2v.batch.work import compute

        backbone, (job,), machine, low_memory = self._prepared(self.prompt[:1])
        options: dict[str, Any] = {"low_memory": low_memory, "progress": progress()}
        return backbone, job.image, compute(backbone, job, machine, taps=taps, observe=observe, **options)

    def request(self, prompt: str) -> Request:
        """Build the request of the job with this prompt."""
        return Request(
            source=self,
            prompt=prompt,
            negative_prompt=self.negative_prompt,
            tracks=self.tracks,
            backbone=self.backbone,
            embeddings=self.embedding,
            method=self.method,
            comparator=self.comparator,
            sampler=self.sampler,
            operators=self.operators,
            seed=self.seed,
            frames=self.frames,
            fps=self.fps,
        )

    @property
    def comparator(self) -> Settings | None:
        """The settings of a method other than AnyI2V; None for AnyI2V.

        Raises InputError for settings of a method that is not selected.
        """
        found = {name: getattr(self, name.replace("-", "_")) for name in SETTINGS}
        for name, settings in found.items():
            if name != self.method_name and settings != type(settings)():
                raise InputError(f"--{name}.* is set, but the method is {self.method_name}; add --method {name}")
        return found.get(self.method_name)

    def _wanted(self, folders: Mapping[Path, str]) -> dict[Path, dict[str, Any]]:
        """Return, for each run of a sweep, the values that its record must have to match this request."""
        from anyi2v.batch.work import read_inputs, wanted
        from anyi2v.reports.record import Fingerprint

        files = read_inputs(self.request(self.prompt[0]))
        seen, config = Fingerprint.of(files.image), files.config
        embeddings = self._embeddings(config.text, [*folders.values(), self.negative_prompt])
        prompts = {folder: self._fitting(prompt, embeddings) for folder, prompt in folders.items()}
        asked = asked_of(self.device, self.dtype, self.threads, self.low_memory)
        return {
            folder: wanted(self.request(prompt), asked, config, seen, files.tracks)
            for folder, prompt in prompts.items()
        }

    def _prepared(self, prompts: Sequence[str]) -> "tuple[Backbone, list[Inputs], Machine, bool]":
        """Return the backbone, a job per prompt, the machine, and whether to use low-memory mode.

        Prints the memory that a job will need. Raises all errors that can be detected before any work.
        """
        from anyi2v.backbone.text import tokenize
        from anyi2v.batch.work import check_inputs, load_backbone, memory_mode, read_inputs, shadow
        from anyi2v.reports.repeat import check_repeat

        machine = machine_of(self.device, self.dtype, self.threads, self.low_memory, self.cache)
        if self.repeat:
            files: dict[str, Any] = {name: getattr(self, name) for name in ("backbone", "image", "tracks")}
            files |= {"embeddings": self.embedding, "control": self.sparsectrl.control}
            check_repeat(self.repeat, **files, device=self.device)
        text = read_config(self.backbone).text
        embeddings = self._embeddings(text, [*prompts, self.negative_prompt])
        requests = [self.request(self._fitting(prompt, embeddings)) for prompt in prompts]
        tokenize(text, [*(request.prompt for request in requests), self.negative_prompt], embeddings)
        first = read_inputs(requests[0])
        jobs = [replace(first, request=request) for request in requests]
        check_inputs(first, shadow(first.config))
        if self.tracks is None:
            LOGGER.info("no --tracks: only the layout of the first frame is controlled, the motion is not")
        LOGGER.info("memory: predicting what the job needs")
        low_memory, needs = memory_mode(first, machine)
        chosen = f"; computing in {machine.dtype}, which is faster here" if self.dtype == "auto" else ""
        LOGGER.info("memory: %s%s", needs, chosen.replace("torch.", ""))
        if self.repeat and low_memory and not self.low_memory:
            note = f"{self.repeat} needed more memory than is free here; low-memory mode may change the bytes"
            warnings.warn(note, AnyI2VWarning, stacklevel=2)
        return load_backbone(first.request, machine), jobs, machine, low_memory

    def _embeddings(self, text: TextConfig, prompts: Sequence[str]) -> "dict[str, Tensor]":
        """Read all embeddings; warn about those that no prompt uses."""
        if not self.embedding:
            return {}
        from anyi2v.backbone.prompt_syntax import used
        from anyi2v.checkpoints.embeddings import read_embeddings

        found = read_embeddings(self.embedding, text)
        if idle := sorted(found.keys() - used(prompts, found)):
            names = ", ".join(map(repr, idle))
            warnings.warn(f"no prompt uses the embedding {names}, so it has no effect", AnyI2VWarning, stacklevel=2)
        return found

    def _fitting(self, prompt: str, embeddings: "Mapping[str, Tensor]") -> str:
        """Return the prompt, truncated to the text tower's length if requested."""
        if not self.truncate_prompt:
            return prompt
        from anyi2v.backbone.text import shortened

        kept, cut = shortened(read_config(self.backbone).text, prompt, embeddings)
        if cut:
            LOGGER.info("prompt too long: %r is removed; the text tower sees %r", cut, kept)
        return kept
