import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyi2v.errors import InputError, NumericsError
from anyi2v.images.media import load_image
from anyi2v.job import LossRecord, Result
from anyi2v.method.config import MethodConfig
from anyi2v.reports.folder import check_out
from anyi2v.reports.record import Origin, differences, image_checksum, tracks_checksum
from anyi2v.reports.writing import write_run
from anyi2v.tracks import Track, Tracks, load_tracks

TRACKS = Tracks(16, 16, (Track("a", ((1, 1, 5, 5), (2, 1, 6, 5), (3, 1, 7, 5))),))
CONDITION = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255


def result(objects: bool = True) -> Result:
    video = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Result(
        video=video,
        masks=[(video[:, 0] > 0.5).float()] if objects else [],
        losses=[LossRecord(step, 961, k, 1.0 - 0.1 * k) for step in range(2) for k in range(3)] if objects else [],
        timings={"decode": 0.1},
        prompt="a",
        negative_prompt="b",
        tracks=TRACKS if objects else Tracks(16, 16),
        config=MethodConfig(lr=0.5),
        seed=3,
        fps=8,
        features={},
    )


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    path = tmp_path / "weights" / "x.safetensors"
    path.parent.mkdir()
    save_file({"weights": torch.zeros(3)}, path)
    return str(path)


FILES = {
    "condition.png",
    "loss.png",
    "report.html",
    "run.json",
    "sheet.png",
    "side_by_side.gif",
    "side_by_side.mp4",
} | {
    "video.gif",
    "video.mp4",
}


def test_folder_holds_everything(tmp_path: Path, backbone: str) -> None:
    out = tmp_path / "new" / "out"
    write_run(out, result(), CONDITION, Origin(backbone))
    assert {path.name for path in out.iterdir()} == FILES | {"masks.png", "tracks.png"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert torch.equal(load_image(out / "condition.png"), CONDITION)
    assert load_tracks(out / "run.json") == TRACKS
    data = json.loads((out / "run.json").read_text())
    assert MethodConfig.from_dict(data["method"]) == MethodConfig(lr=0.5)
    assert data["backbone"] == {"name": backbone, "sha256": hashlib.sha256(Path(backbone).read_bytes()).hexdigest()}
    assert data["losses"][1] == {"step": 0, "timestep": 961, "iteration": 1, "loss": 0.9}
    assert (data["frames"], data["width"], data["height"], data["fps"]) == (3, 16, 16, 8)
    assert data["versions"]["torch"] == torch.__version__


def test_runs_without_objects_have_no_masks(tmp_path: Path, backbone: str) -> None:
    write_run(tmp_path / "out", result(objects=False), CONDITION, Origin(backbone))
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_former_runs_are_replaced_only_when_asked_and_other_folders_never(tmp_path: Path, backbone: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_run(out, result(), CONDITION, Origin(backbone))  # an empty folder is fine
    (out / "note.txt").touch()
    with pytest.raises(InputError, match="already has a run; use --overwrite to replace it"):
        write_run(out, result(), CONDITION, Origin(backbone))
    write_run(out, dataclasses.replace(result(), seed=4), CONDITION, Origin(backbone), overwrite=True)
    assert json.loads((out / "run.json").read_text())["seed"] == 4
    assert (out / "note.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "weights"}
    with pytest.raises(InputError, match="has files that are not a run"):
        check_out(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file; give a folder"):
        check_out(out / "run.json", overwrite=True)


def test_the_record_holds_what_decides_the_bytes(tmp_path: Path, backbone: str) -> None:
    out = tmp_path / "out"
    job = dataclasses.replace(result(), low_memory=True, features_given=True)
    (tmp_path / "style.pt").write_bytes(b"vectors")
    write_run(out, job, CONDITION, Origin(backbone, embeddings=(tmp_path / "style.pt",)))
    data = json.loads((out / "run.json").read_text())
    assert (data["low_memory"], data["features"]) == (True, "given")
    digest = hashlib.sha256(b"vectors").hexdigest()
    assert data["embeddings"] == [{"name": str((tmp_path / "style.pt").resolve()), "sha256": digest}]
    assert data["checksums"] == {
        "condition": image_checksum(load_image(out / "condition.png")),
        "tracks": tracks_checksum(data["tracks"]),
    }
    assert {"anyi2v", "code", "python", "torch", "numpy", "open_clip_torch"} <= data["versions"].keys()
    assert data["threads"] == torch.get_num_threads() and data["processor"] and data["device"] == "cpu"
    assert data["failed_outputs"] == {}


def test_checksums_tell_pixels_sizes_boxes_and_masks_apart() -> None:
    one = CONDITION.clone()
    one[0, 0, 0] = 1 - one[0, 0, 0].round()
    images = [CONDITION, one, CONDITION[:, :8].reshape(3, 16, 8), CONDITION[:, :8].reshape(3, 8, 16)]
    assert len({image_checksum(image) for image in images}) == 4
    track = TRACKS.objects[0]
    moved = dataclasses.replace(track, boxes=(*track.boxes[:-1], (3, 1, 7, 5.000001)))
    masked = dataclasses.replace(track, mask=np.ones((16, 16), dtype=bool))
    other = dataclasses.replace(track, mask=np.eye(16, dtype=bool) == 0)
    tracks = [Tracks(16, 16, (one,)).to_dict() for one in (track, moved, masked, other)]
    assert len({tracks_checksum(data) for data in tracks}) == 4
    assert tracks_checksum(json.loads(json.dumps(tracks[2]))) == tracks_checksum(tracks[2])


def test_differences_name_what_is_another() -> None:
    former = {"seed": 3, "prompt": "a", "backbone": {"name": "x", "sha256": "1"}, "tracks": 1, "method": {"lr": 1}}
    assert differences(former, former) == []
    wanted = {"seed": 4, "prompt": "a", "backbone": {"name": "x", "sha256": "2"}, "method": {"lr": 2, "new": True}}
    assert differences(former, wanted) == [
        "seed: 3, not 4",
        'backbone sha256: "1", not "2"',
        "method lr: 1, not 2",
        "method new: null, not true",
    ]
    assert differences(former, {"loras": ["x"]}) == ['loras: null, not ["x"]']


def test_failure_leaves_the_former_run(tmp_path: Path, backbone: str) -> None:
    out = tmp_path / "out"
    write_run(out, result(), CONDITION, Origin(backbone))
    broken = result()
    broken.video[1] = float("nan")
    with pytest.raises(NumericsError, match="frame 2"):
        write_run(out, broken, CONDITION, Origin(backbone), overwrite=True)
    assert json.loads((out / "run.json").read_text())["seed"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"out", "weights"}
