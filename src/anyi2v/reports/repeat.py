"""Checks that a run can be repeated from its record."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyi2v.checkpoints.header import DEFAULT_CONTROL
from anyi2v.comparators.settings import SETTINGS
from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.files import read_json
from anyi2v.images.media import load_image
from anyi2v.reports.folder import CONDITION, record_of
from anyi2v.reports.record import control_sha256, image_checksum, sha256, tracks_checksum, weights_sha256
from anyi2v.samplers import SAMPLERS
from anyi2v.versions import processor, versions


def check_repeat(
    path: Path,
    *,
    backbone: str,
    image: Path | None,
    tracks: Path | None,
    embeddings: Sequence[Path],
    control: str | None,
    device: str,
) -> None:
    """Check that a run can be repeated with the files it was made with.

    Warns if it was made with other versions or on another kind of processor, or from features that are not recorded.

    Args:
        path: the run's run.json, or its folder.
        backbone, image, tracks, embeddings, control: files to use now; a file with another path than the run's is a
            deliberate change and not compared.
        device: device to compute on.

    Raises InputError naming the file that has changed, and what to do.
    """
    path = record_of(path)
    data = read_json(path)
    for kind, name in data.get("parts", {}).items():
        if (kind, name) not in known_parts():
            raise InputError(
                f"{path} was made with the {kind} {name}, which the command line does not know; repeat it in Python "
                f"with anyi2v.animate({kind}=...)"
            )
    for name, recorded, present in _files(data, backbone, embeddings, control):
        if present != recorded:
            raise InputError(
                f"{name} is not the file that {path} was made with (SHA-256 {recorded}); restore that one, "
                "or start a new run without --repeat"
            )
    sums = data.get("checksums", {})
    condition = path.with_name(CONDITION)
    if image == condition and "condition" in sums and sums["condition"] != image_checksum(load_image(condition)):
        raise InputError(
            f"{condition} is not the image that {path} was made with: its pixels do not have the SHA-256 "
            f"under checksums.condition ({sums['condition'][:12]}...); restore the original file, or give the new one "
            "by --image under another name"
        )
    if tracks == path and "tracks" in sums and sums["tracks"] != tracks_checksum(data.get("tracks")):
        raise InputError(
            f"the tracks in {path} are not those of the run: they do not have the SHA-256 under checksums.tracks "
            f"({sums['tracks'][:12]}...); restore the original file, or give the new ones by --tracks in a separate "
            "file"
        )
    changes = list(_changes(data, device))
    if changes:
        warnings.warn(f"{path} was made with {'; '.join(changes)}: bytes may differ", AnyI2VWarning, stacklevel=2)
    if data.get("features") == "given":
        text = f"{path} was made with features of another job, which are not recorded; they are recomputed"
        warnings.warn(text, AnyI2VWarning, stacklevel=2)


def _files(
    data: Mapping[str, Any], backbone: str, embeddings: Sequence[Path], control: str | None
) -> Iterator[tuple[str, str, str]]:
    """Yield name, recorded and present checksum of each file that the run was made with and that is used again."""
    former = {entry["name"]: entry["sha256"] for entry in (data["backbone"], *data.get("embeddings", []))}
    if backbone in former:
        yield f"backbone {backbone}", former[backbone], weights_sha256(backbone)
    for file in embeddings:
        if str(file) in former and file.is_file():
            yield f"embedding {file}", former[str(file)], sha256(file)
    recorded = data.get("checksums", {}).get("control")
    if recorded is not None and control == data["method_settings"]["control"]:
        yield f"sparse control network {control or DEFAULT_CONTROL}", recorded, control_sha256(control)


def known_parts() -> set[tuple[str, str]]:
    """Return kind and name of the parts of the algorithm that the command line knows."""
    return {("sampler", name) for name in SAMPLERS} | {("method", name) for name in SETTINGS}


def _changes(data: Mapping[str, Any], device: str) -> Iterator[str]:
    """Yield the recorded versions and processor that differ from the current ones."""
    former = data.get("versions", {})
    for name, here in versions().items():
        if name in former and former[name] != here:
            yield f"{name} {former[name]} (here {here})"
    if "processor" in data and data.get("device") == device and data["processor"] != processor(device):
        yield f"processor {data['processor']} (here {processor(device)})"
