"""Input files of an evaluation, and all checks that can be made before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anyi2v.errors import InputError
from anyi2v.evaluation.conventions import FRAME_CONVENTIONS, VIDEO_CONVENTIONS, Convention, find
from anyi2v.evaluation.opencv import check_opencv
from anyi2v.evaluation.packaged import DINO, EFFICIENTNET, packaged
from anyi2v.evaluation.partners import find_images, find_prompts, find_tracks
from anyi2v.evaluation.request import METRICS, Metric, Request
from anyi2v.evaluation.videos import Shape, check_names, find_videos, read_all, shape_of
from anyi2v.files import expanded
from anyi2v.images.media import load_image
from anyi2v.tracks import Tracks, load_tracks
from anyi2v.tracks.review import SAME_ASPECT

FOLLOWING: tuple[Metric, ...] = ("objmc", "trajectory")
"""Metrics that follow the objects of track files."""

FEW_FILES = "objmc and trajectory only need --tracks, structure only --images, fd only --real"
"""Advice for those who name no metric, or have no files of networks."""


@dataclass(frozen=True)
class Inputs:
    """Files of a request by video name, and the shape that all videos share."""

    generated: dict[str, Path]
    shape: Shape
    real: dict[str, Path] | None = None
    real_shape: Shape | None = None
    tracks: dict[str, Tracks] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    """Condition images."""
    prompts: dict[str, str] = field(default_factory=dict)


def check(request: Request) -> Inputs:
    """Find and read all videos and tracks once, to reject before any work what cannot be measured.

    Raises:
        InputError: a metric lacks an input, a name has no partner, there are too few videos, a video cannot be read or
            differs from the others in frames or size, or tracks cannot be read.
    """
    _check_needs(request)
    generated = find_videos(request.generated)
    real = find_videos(request.real) if request.real is not None else None
    if real is not None and request.real is not None:
        check_names(generated, real, request.real)
    following = [metric for metric in FOLLOWING if metric in request.metrics]
    tracks = find_tracks(request.tracks) if request.tracks is not None and following else {}
    if tracks and request.tracks is not None:
        check_names(generated, tracks, request.tracks)
    images = find_images(request.images) if request.images and "structure" in request.metrics else {}
    prompts = find_prompts(request.prompts) if request.prompts and "clip" in request.metrics else {}
    for found, place in ((images, request.images), (prompts, request.prompts)):
        if found and place is not None:
            check_names(generated, found, place)
    if {"fid", "kid", "fvd", "kvd", "fd"} & {*request.metrics} and len(generated) < 2:
        raise InputError(f"{request.generated} holds a single video; distances between sets need two or more")
    shape, real_shape = _common(generated), _common(real) if real is not None else None
    if real_shape is not None:
        _check_alike(shape, real_shape)
    _check_frames(request, shape)
    drawn_on = (like := real_shape or shape).width, like.height
    loaded = {name: load_tracks(path, size=drawn_on) for name, path in tracks.items()}
    for name, found in loaded.items():
        if not _alike((found.width, found.height), drawn_on):
            raise InputError(
                f"{tracks[name]} is drawn on {found.width}x{found.height} px, but the videos have "
                f"{drawn_on[0]}x{drawn_on[1]}; they must have one aspect ratio"
            )
    if following and not any(found.objects for found in loaded.values()):
        raise InputError(f"no file of {request.tracks} has an object; {following[0]} follows objects")
    for path in images.values():
        image = load_image(path)
        if not _alike((image.shape[2], image.shape[1]), (shape.width, shape.height)):
            raise InputError(
                f"{path} has {image.shape[2]}x{image.shape[1]} px, but the videos have {shape.width}x{shape.height}; "
                "they must have one aspect ratio"
            )
    return Inputs(generated, shape, real, real_shape, loaded, images, prompts)


def conventions(request: Request) -> dict[str, Convention]:
    """Return the convention of each feature-based metric; raises InputError if unknown, or missing where required."""
    found = {}
    for names, value, flag, known in (
        (("fid", "kid"), request.frame_convention, "--frame-convention", FRAME_CONVENTIONS),
        (("fvd", "kvd"), request.video_convention, "--video-convention", VIDEO_CONVENTIONS),
    ):
        for name in (name for name in names if name in request.metrics):
            if value is None:
                raise InputError(
                    f"{name} needs {flag}, because scores of different conventions are not comparable: "
                    f"{', '.join(known)}; {FEW_FILES}"
                )
            found[name] = find(value, known)
    return found


def _check_needs(request: Request) -> None:
    if not request.metrics:
        raise InputError(f"there is nothing to measure; --metrics must be some of {', '.join(METRICS)}; {FEW_FILES}")
    if request.resamples < 0:
        raise InputError(f"resamples={request.resamples} is not allowed; it must be 0 or more")
    conventions(request)
    real, frames, videos = ("--real", request.real), ("--extractor", request.extractor), request.video_extractor
    needs = {
        **dict.fromkeys(("fid", "kid"), (real, frames)),
        **dict.fromkeys(("fvd", "kvd"), (real, ("--video-extractor", videos))),
        **dict.fromkeys(FOLLOWING, (("--tracks", request.tracks),)),
        "fd": (real,),
        "structure": (("--images", request.images),),
        "clip": (("--clip", request.clip), ("--prompts", request.prompts)),
    }
    for metric in request.metrics:
        for flag, value in needs[metric]:
            if value is None:
                raise InputError(f"{metric} needs {flag}; give it, or name other --metrics: {FEW_FILES}")
    if {*FOLLOWING} & {*request.metrics}:
        check_opencv()
    if "clip" in request.metrics and request.clip:
        _check_clip(request.clip, request.clip_model)
    if "fd" in request.metrics:
        packaged(*EFFICIENTNET)
    if "structure" in request.metrics and request.structure_network is None:
        packaged(*DINO)


def _check_clip(path: Path, model: str) -> None:
    """Raises InputError for a missing file, an unknown model, or one of which a part would be downloaded."""
    import open_clip

    if not expanded(path).is_file():
        raise InputError(f"cannot read {path}: there is no such file")
    if model not in open_clip.list_models():
        raise InputError(f"open_clip has no model {model!r}; name the one that {path} was made for in --clip-model")
    text = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    if "hf_tokenizer_name" in text or "hf_model_name" in text or "siglip" in model.lower():
        raise InputError(
            f"open_clip's {model!r} downloads its tokenizer, and nothing is downloaded here; use a model with CLIP's "
            "own tokenizer, such as ViT-B-32"
        )


def _common(videos: Mapping[str, Path]) -> Shape:
    shapes = {shape_of(video) for _, video in read_all(videos)}
    return shapes.pop()


def _check_alike(generated: Shape, real: Shape) -> None:
    if generated.frames != real.frames:
        raise InputError(f"generated videos have {generated.frames} frames, real ones {real.frames}; they must agree")
    if not _alike((generated.width, generated.height), (real.width, real.height)):
        raise InputError(f"generated videos have {generated}, real ones {real}; they must have one aspect ratio")


def _alike(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1) <= SAME_ASPECT


def _check_frames(request: Request, shape: Shape) -> None:
    for metric, convention in conventions(request).items():
        if shape.frames < convention.least_frames:
            raise InputError(
                f"{metric}: convention {convention.name!r} needs {convention.least_frames} frames or more, but the "
                f"videos have {shape.frames}"
            )
    for metric in FOLLOWING:
        if metric in request.metrics and shape.frames < 2:
            raise InputError(f"{metric} needs videos of two frames or more; these have one")
