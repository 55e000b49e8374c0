"""The record run.json of everything that determines a run's bytes, to repeat, compare and recognise runs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.checkpoints.header import DEFAULT_CONTROL, SHIPPED, SHIPPED_CONTROLS, resolve, resolve_control, sources
from anyi2v.files import expanded
from anyi2v.images.media import to_bytes
from anyi2v.job import Result
from anyi2v.method.config import MethodConfig
from anyi2v.reports.following import measure_following
from anyi2v.tracks import Tracks
from anyi2v.versions import processor, versions


class Fingerprint(NamedTuple):
    """Size and checksum of a condition image, as stored in a record."""

    width: int
    height: int
    sha256: str
    """Checksum by `image_checksum`."""

    @staticmethod
    def of(image: Float[Tensor, "3 h w"]) -> "Fingerprint":
        """Compute the fingerprint of an image."""
        return Fingerprint(image.shape[2], image.shape[1], image_checksum(image))


@dataclass(frozen=True)
class Origin:
    """Origin, device and dtype of the networks of a run, for its record."""

    backbone: str
    """Name or path of the backbone."""
    device: str = "cpu"
    dtype: str = "float32"
    """Dtype of the networks."""
    embeddings: tuple[Path, ...] = ()
    """Textual inversion files that the backbone was loaded with."""


@dataclass(frozen=True)
class RunInputs:
    """All user inputs of a run; two runs with equal inputs give the same video.

    Used both for the record of a run and to check whether a run already exists.
    """

    backbone: str
    """Name or path of the backbone."""
    image: "Float[Tensor, '3 h w'] | Fingerprint"
    """Condition image at the video's size, or its fingerprint."""
    tracks: Tracks
    """Tracks in any frame of reference; recorded as used by `animate`."""
    prompt: str
    negative_prompt: str
    seed: int
    frames: int
    fps: int
    config: MethodConfig
    embeddings: Sequence[Path] = ()
    """Textual inversion files that the backbone was loaded with."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Parts of the algorithm that differ from the defaults, as in `Result.parts`."""
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of another method, as in `Result.method_settings`."""
    weights: str | None = None
    """`weights_sha256` of the backbone, if already known."""
    control: str | None = None
    """`control_sha256` of the method's sparse control network, if already known."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data; shipped backbones are stored by name, others by full path."""
        backbone, seen = self.backbone, self.image
        if not isinstance(seen, Fingerprint):
            seen = Fingerprint.of(seen)
        tracks = self.tracks.scaled(seen.width, seen.height).resample(self.frames).to_dict()
        checksums, settings = {"condition": seen.sha256, "tracks": tracks_checksum(tracks)}, dict(self.method_settings)
        if "control" in settings:
            checksums["control"] = self.control or control_sha256(settings["control"])
            settings["control"] = _control_name(settings["control"])
        return {
            "backbone": {
                "name": backbone if backbone in SHIPPED else str(resolve(backbone).resolve()),
                "sha256": weights_sha256(backbone) if self.weights is None else self.weights,
            },
            "embeddings": [_file(path) for path in self.embeddings],
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "frames": self.frames,
            "width": seen.width,
            "height": seen.height,
            "fps": self.fps,
            "checksums": checksums,
            "tracks": tracks,
            "method": self.config.to_dict(),
            "parts": dict(self.parts),
            "method_settings": settings,
        }


def _control_name(control: str | None) -> str | None:
    """Return the name of a shipped sparse control network, or the full path of a file; None stands for the default."""
    return control if control is None or control in SHIPPED_CONTROLS else str(resolve_control(control).resolve())


def _file(path: Path) -> dict[str, str]:
    path = expanded(path).resolve()
    return {"name": str(path), "sha256": sha256(path)}


def record(result: Result, condition: Float[Tensor, "3 h w"], origin: Origin) -> dict[str, Any]:
    """Build the record of a run: its `RunInputs`, how and where it was computed, seconds per stage, losses, and how
    closely the objects follow their tracks.

    Args:
        result: result of `animate`.
        condition: image that was passed to `animate`.
        origin: origin of the networks.
    """
    inputs = RunInputs(
        backbone=origin.backbone,
        image=condition,
        tracks=result.tracks,
        prompt=result.prompt,
        negative_prompt=result.negative_prompt,
        seed=result.seed,
        frames=len(result.video),
        fps=result.fps,
        config=result.config,
        embeddings=origin.embeddings,
        parts=result.parts,
        method_settings=result.method_settings,
    )
    return {
        "versions": versions(),
        **inputs.to_dict(),
        "device": origin.device,
        "processor": processor(origin.device),
        "dtype": origin.dtype,
        "threads": torch.get_num_threads(),
        "low_memory": result.low_memory,
        "operators": result.operators,
        "features": "given" if result.features_given else "computed",
        "timings": result.timings,
        "losses": [dataclasses.asdict(loss) for loss in result.losses],
        "trajectories": [dataclasses.asdict(one) for one in measure_following(result.video, result.tracks)],
        "failed_outputs": {},
    }


def differences(former: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describe how the record of a run differs from the wanted `RunInputs` and other entries."""
    found = []
    for name, here in wanted.items():
        there = former.get(name)
        if there == here or name == "tracks":  # the checksum is compared instead
            continue
        if here == {} and there is None:  # older records lack some entries
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            # a part that only the earlier run had is a difference too
            known = here | there if name in ("parts", "method_settings") else here
            keys = [key for key in known if here.get(key) != there.get(key)]
            found += [f"{name} {key}: {_short(there.get(key))}, not {_short(here.get(key))}" for key in keys]
        else:
            found.append(f"{name}: {_short(there)}, not {_short(here)}")
    return found


RESULTS = ("timings", "losses", "trajectories", "failed_outputs")
"""Entries of a record that describe the run's results; all others are its inputs."""


def varied(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return each input, as "method.lr", whose value is not the same in all records, with its values as text.

    Of the tracks, only the checksum is compared.
    """
    flat: list[dict[str, Any]] = []
    for record in records:
        values = {name: value for name, value in record.items() if name not in (*RESULTS, "tracks")}
        groups = {name: value if isinstance(value, dict) else {"": value} for name, value in values.items()}
        flat.append({f"{name}.{key}".rstrip("."): x for name, group in groups.items() for key, x in group.items()})
    names = dict.fromkeys(name for values in flat for name in values)
    found = {name: [values.get(name) for values in flat] for name in names}
    return {
        name: ["none" if value is None else _short(value) for value in values]
        for name, values in found.items()
        if any(value != values[0] for value in values)
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(backbone: str) -> str:
    """Return the SHA-256 of a backbone's file, or of the digests of all its files if it refers to others."""
    digests = [sha256(path) for path in sources(resolve(backbone))]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def control_sha256(control: str | None) -> str:
    """Return the SHA-256 of a sparse control network's file; None stands for the default network."""
    return sha256(resolve_control(control or DEFAULT_CONTROL))


def image_checksum(image: Float[Tensor, "3 h w"]) -> str:
    """Return the SHA-256 of the size and the 8-bit pixels, regardless of the file format."""
    height, width = image.shape[1:]
    return hashlib.sha256(f"{width}x{height}\n".encode() + to_bytes(image).tobytes()).hexdigest()


def tracks_checksum(tracks: Any) -> str:
    """Return the SHA-256 of tracks as plain data, including masks."""
    return hashlib.sha256(json.dumps(tracks, sort_keys=True).encode()).hexdigest()
