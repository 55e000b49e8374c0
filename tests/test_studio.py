"""The studio without a browser: forms, requests, commands, sessions, runs and proposals."""

import dataclasses
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anyi2v import cli
from anyi2v.batch.jobs import read_jobs
from anyi2v.batch.request import Request
from anyi2v.batch.work import Machine
from anyi2v.checkpoints.checkpoint import save
from anyi2v.checkpoints.header import read_config
from anyi2v.cli.animate import Animate
from anyi2v.cli.studio import Studio
from anyi2v.comparators.settings import SETTINGS, ComparatorName, MethodName, SparseCtrlSettings
from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import Mask, MethodConfig
from anyi2v.method.recipes import RECIPES
from anyi2v.studio import handlers, server
from anyi2v.studio.command import animate_arguments, command_line, job_line
from anyi2v.studio.document import empty, written
from anyi2v.studio.engine import Cancelled, Engine, strip
from anyi2v.studio.examples import EXAMPLES
from anyi2v.studio.fields import parsed, settings_of, shown
from anyi2v.studio.form import METHOD, Shape, comparator_form, form_of_record, method_form, request_of, usual_form
from anyi2v.studio.proposals import MASK_SIDE, connected, mask_entry, proposal
from anyi2v.studio.workspace import new_job, new_token, run_folder, run_names, session_folder, write_job
from anyi2v.tracks.masks import decode

from .networks import SHORT, tiny_backbone
from .test_batch import OWN, contents

CONFIG = read_config("micro")


# forms


@pytest.mark.parametrize("kind", [MethodConfig, ConditionSource, *SETTINGS.values()])
def test_every_setting_is_a_field_with_a_text(kind: type[Any]) -> None:
    found = settings_of(kind)
    assert [setting.name for setting in found] == [field.name for field in dataclasses.fields(kind)]
    assert all(setting.text for setting in found)


@pytest.mark.parametrize("name", RECIPES)
def test_a_form_keeps_every_setting(name: str) -> None:
    for setting in settings_of(MethodConfig):
        value = getattr(RECIPES[name], setting.name)
        assert parsed(setting, shown(setting, value)) == value, setting.name
    for setting in settings_of(ConditionSource):
        if setting.name not in ("image", "layer"):
            value = getattr(ConditionSource(), setting.name)
            assert parsed(setting, shown(setting, value)) == value, setting.name


VALUES = {"subjects": ("red circle", "star"), "layers": ("up_blocks.1",), "frames": (1, -1), "edit_steps": 3}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_methods_keep_every_setting(name: ComparatorName) -> None:
    names = {field.name for field in dataclasses.fields(SETTINGS[name])}
    used = SETTINGS[name].from_dict({"injection": True} | {key: VALUES[key] for key in VALUES.keys() & names})
    form = {**usual_form(CONFIG), "prompt": "a red circle", **comparator_form(used)}
    assert form["method"] == name
    assert request_of(form, CONFIG, "micro", Path("x"), Shape(64, 64)).comparator == used


def test_no_setting_of_the_page_opens_a_file(tmp_path: Path) -> None:
    form = {**usual_form(CONFIG), "prompt": "a red circle", "method": "sparsectrl"}
    assert "sparsectrl.control" not in form
    with pytest.raises(InputError, match="only the command line opens it"):
        comparator_form(SparseCtrlSettings(control="/etc/passwd"))
    request = request_of({**form, "sparsectrl.control": "/etc/passwd"}, CONFIG, "micro", tmp_path, Shape(64, 64))
    assert request.comparator == SparseCtrlSettings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", None, "steps is empty"),
        ("steps", 2.5, "steps=2.5"),
        ("steps", 0, "steps=0"),
        ("mask", "maybe", "mask='maybe'"),
        ("lr", "x", "lr='x'"),
        ("window", "x", "window: 'x' is not a number"),
        ("window", "0", "window=0"),
        ("align", "no.such", "align"),
        ("freetraj.subjects", 3, "subjects=3"),
        ("freetraj.d_s", None, "d_s is empty"),
        ("freetraj.isolation", 2, "isolation=2"),
    ],
)
def test_unusable_fields_are_named(tmp_path: Path, name: str, value: Any, words: str) -> None:
    key = name if "." in name else METHOD + name
    form = {**usual_form(CONFIG), "prompt": "a red ball", "method": "freetraj", key: value}
    if name == "align":
        form |= {METHOD + "optimise_steps": 1, METHOD + "align": ""}
    with pytest.raises(InputError, match=re.escape(words)):
        request_of(form, CONFIG, "micro", tmp_path, Shape(64, 64))


FORMS = st.fixed_dictionaries(
    {
        "prompt": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip),
        "negative_prompt": st.text("ab -'\"$`", max_size=8),
        "seed": st.integers(-5, 2**40),
        "frames": st.integers(1, 16),
        "fps": st.integers(1, 30),
        "sampler": st.just("ddim") | st.just("dpm-solver-2m"),
        "recipe": st.sampled_from([*RECIPES]),
        "method": st.sampled_from(get_args(MethodName)),
    },
    optional={
        METHOD + "lr": st.floats(0, 1),
        METHOD + "steps": st.integers(1, 50),
        METHOD + "debias": st.booleans(),
        METHOD + "mask": st.sampled_from(get_args(Mask)),
        METHOD + "pca_dim": st.none() | st.integers(1, 64),
        METHOD + "guidance_steps": st.none() | st.integers(0, 9),
        METHOD + "share_kv": st.sampled_from(["", "up_blocks.1.attentions.0, up_blocks.2.attentions.1"]),
        "freetraj.subjects": st.sampled_from(["", "red circle, 'blue' star"]),
        "freetraj.edit_steps": st.sampled_from(["", "3"]),
        "sg-i2v.layers": st.just("up_blocks.1.attentions.0"),
        "sg-i2v.merge": st.booleans(),
        "time-to-move.injection": st.booleans(),
        "sparsectrl.frames": st.just("1, -1"),
    },
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(form=FORMS)
def test_command_and_line_ask_for_the_same_job(tmp_path_factory: pytest.TempPathFactory, form: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("job")
    form = {**usual_form(CONFIG, form["recipe"]), **form}
    request = request_of(form, CONFIG, "micro", folder, Shape(64, 48))
    line = command_line(animate_arguments(request, CONFIG, form["recipe"], {"device": "cpu", "threads": 1}))
    command = cli.parse(shlex.split(line)[1:])
    assert isinstance(command, Animate)
    assert (command.device, command.threads) == ("cpu", 1)
    source = ConditionSource(**{f.name: getattr(command, f.name) for f in dataclasses.fields(ConditionSource)})
    assert dataclasses.replace(command.request(command.prompt[0]), source=source) == request
    write_job(folder, torch.zeros(3, 48, 64), "{}", job_line(request, CONFIG, folder, form["recipe"]))
    jobs = read_jobs(folder / "jobs.jsonl")
    assert not jobs.problems and [job.request for job in jobs.jobs] == [request]


def test_a_record_fills_the_form_again() -> None:
    method = dataclasses.replace(MethodConfig(), lr=0.5, pca_dim=None)
    data = {"prompt": "p", "negative_prompt": "", "seed": 3, "frames": 8, "fps": 4, "method": method.to_dict()}
    form = form_of_record({**data, "parts": {"sampler": "dpm-solver-2m"}})
    assert form["sampler"] == "dpm-solver-2m" and form["seed"] == 3 and form["method"] == "anyi2v"
    assert {key: form[key] for key in method_form(method)} == method_form(method)
    with pytest.raises(InputError, match="not the record"):
        form_of_record({"prompt": "p"})


# sessions and folders


@pytest.mark.parametrize("token", ["", "../../etc", "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "/", "0" * 32 + "\n"])
def test_no_token_leads_out_of_the_folder(tmp_path: Path, token: str) -> None:
    with pytest.raises(InputError, match="session"):
        session_folder(tmp_path, token)


def test_runs_are_those_of_the_list(tmp_path: Path) -> None:
    assert run_names(tmp_path) == []
    for name in ("0001-a-s0", "0002-b-s0"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "0002-b-s0" / "run.json").write_text("{}")
    assert run_names(tmp_path) == ["0002-b-s0"]
    assert run_folder(tmp_path, "0002-b-s0") == tmp_path / "runs" / "0002-b-s0"
    for name in ("0001-a-s0", "..", "../runs/0002-b-s0", "/etc", ""):
        with pytest.raises(InputError, match="no such run"):
            run_folder(tmp_path, name)


def test_jobs_have_numbers_of_their_own(tmp_path: Path) -> None:
    names = [new_job(tmp_path, prompt, 1).name for prompt in ("A <b>ball</b>!", "../..", "A <b>ball</b>!")]
    assert names == ["0001-a-b-ball-b-s1", "0002-prompt-s1", "0003-a-b-ball-b-s1"]


# jobs


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_backbone()
    tiny.config = dataclasses.replace(tiny.config, method=OWN)
    path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
    save(tiny, path)
    return path


@pytest.fixture(scope="module")
def engine(backbone: Path) -> Engine:
    return Engine(str(backbone), Machine(asked={"device": "cpu"}))


@pytest.fixture
def session(tmp_path: Path, engine: Engine) -> tuple[Path, str]:
    """The studio's folder, and a session with an image of twice the video's size."""
    token = new_token()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "upload.png")
    handlers.use_image(engine, session_folder(tmp_path, token), ConditionSource(image=tmp_path / "upload.png"))
    return tmp_path, token


KEYS = [{"frame": 1, "box": [1, 1, 9, 9]}, {"frame": 3, "box": [5, 1, 13, 9]}]
TRACKS = written({**empty(16, 16, 3), "objects": [{"name": "ball", "keyframes": KEYS}]})


def form_of(engine: Engine, **changes: Any) -> dict[str, Any]:
    return {**usual_form(engine.config), **method_form(SHORT), "prompt": "a red ball", "frames": 3, **changes}


def finished(
    engine: Engine, root: Path, token: str, *, inspect: bool = True, **options: Any
) -> tuple[Request, Path, list[Any]]:
    prepared = handlers.prepare(engine, session_folder(root, token), form_of(engine, **options), TRACKS)
    job, out = handlers.start(engine, root, prepared, "paper")
    engine.arm(token)
    said = list(handlers.steps(engine, job, out, token, low_memory=prepared.low_memory, inspect=inspect))
    return job.request, out, said


def test_the_command_and_the_batch_make_the_same_bytes(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    request, out, said = finished(engine, root, token, seed=7)
    stages = {words.split(":")[0] for words, share, _ in said if share is not None}
    assert {"inversion", "denoising", "writing"} <= stages
    assert any(picture is not None for _, _, picture in said)
    command = handlers.command_of(engine, request, "paper", low_memory=False)
    arguments = shlex.split(command)
    assert arguments[0] == "anyi2v" and arguments[-2:] == ["--out", "again"]
    assert cli.main([*arguments[1:-1], str(root / "again")]) == 0
    jobs = root / "jobs" / out.name / "jobs.jsonl"
    flags = ["--threads", "1", "--dtype", "float32", "--out", str(root / "batch")]
    assert cli.main(["batch", str(jobs), *flags]) == 0
    inspected = {path.name for path in (out / "inspection").iterdir()}
    assert "gallery.json" in inspected and handlers.features_of(out)
    shutil.rmtree(out / "inspection")
    assert contents(root / "again") == contents(out) == contents(root / "batch" / out.name)
    assert Path(handlers.video_of(out) or "").is_file()
    assert len(handlers.pictures_of(out)) == 4
    assert {Path(path).name for path in handlers.files_of(root, out.name)} >= {"jobs.jsonl", "tracks.json", "run.json"}


def test_history_loads_and_compares(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    _, one, _ = finished(engine, root, token, seed=1)
    _, two, _ = finished(engine, root, token, seed=2)
    assert run_names(root) == [two.name, one.name]
    assert handlers.compared(root, one.name, two.name) == "seed: 1, not 2"
    assert handlers.compared(root, one.name, one.name) == "the inputs are the same"
    other = new_token()
    image, form, document = handlers.load_run(root, session_folder(root, other), one.name)
    assert form == {**form_of(engine, seed=1)} and document == json.loads(TRACKS)
    assert image.shape == (3, 16, 16)
    prepared = handlers.prepare(engine, session_folder(root, other), form, written(document))
    assert prepared.job.request.method == SHORT
    assert engine.seconds(prepared.job) > 0


def test_other_methods_run_and_load(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    settings = {"method": "time-to-move", "time-to-move.strong_step": "2", "time-to-move.weak_step": "0"}
    _, one, _ = finished(engine, root, token, inspect=False, **settings)
    _, two, _ = finished(engine, root, token, inspect=False, **settings | {"time-to-move.strong_step": "1"})
    assert handlers.compared(root, one.name, two.name) == "method_settings.strong_step: 2, not 1"
    _, form, _ = handlers.load_run(root, session_folder(root, token), one.name)
    assert form == form_of(engine, **settings)


def test_a_stopped_job_leaves_no_run(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    prepared = handlers.prepare(engine, session_folder(root, token), form_of(engine), TRACKS)
    job, out = handlers.start(engine, root, prepared, "paper")
    engine.arm(token)
    engine.arm(other := new_token())
    engine.stop(other)  # another tab's
    updates = engine.run(job, out, token, low_memory=False)
    next(updates)
    engine.stop(token)
    with pytest.raises(Cancelled, match="cancelled"):
        list(updates)
    assert not out.exists() and run_names(root) == []
    # a page that is closed stops its job, too
    engine.arm(token)
    updates = engine.run(job, out, token, low_memory=False)
    next(updates)
    updates.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
    assert not out.exists()


def test_two_tabs_do_not_mix(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    other = new_token()
    image, prompt, document = handlers.use_example(engine, session_folder(root, other), "Edge map")
    assert prompt and document["objects"]
    mine, theirs = (handlers.condition_of(session_folder(root, name))[0] for name in (token, other))
    assert torch.equal(theirs, image) and not torch.equal(mine, theirs)


def test_what_cannot_run_is_said_before_any_file_of_a_job(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    folder = session_folder(root, token)
    for changes, words in (
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "x" * 5000}, "longer than 4000 letters"),
        ({"frames": 99}, "frames requested"),
        ({"recipe": "<b>"}, "recipe '<b>' is not known"),
        ({"seed": None}, "seed is empty"),
    ):
        with pytest.raises(InputError, match=words):
            handlers.prepare(engine, folder, form_of(engine, **changes), TRACKS)
    with pytest.raises(InputError, match="there is no image yet"):
        handlers.prepare(engine, session_folder(root, new_token()), form_of(engine), TRACKS)
    assert not (root / "jobs").exists()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_can_be_used(tmp_path: Path, name: str) -> None:
    engine = Engine("micro", Machine())
    image, prompt, document = handlers.use_example(engine, tmp_path, name)
    prepared = handlers.prepare(engine, tmp_path, {**usual_form(CONFIG), "prompt": prompt}, written(document))
    assert prepared.job.tracks.objects and image.shape == (3, CONFIG.height, CONFIG.width)
    assert "GiB" in prepared.needs and prepared.notes == []


def test_a_reload_restores_what_is_still_usable(session: tuple[Path, str], engine: Engine) -> None:
    root, token = session
    saved = json.dumps({"token": token, "document": json.loads(TRACKS), "form": {"prompt": "x", "seed": [1]}})
    found, values = handlers.restored(root, saved, new_token())
    assert found == token and values["document"] == json.loads(TRACKS) and values["form"] == {"prompt": "x"}
    assert values["image"].shape == (3, 16, 16)
    for bad in ("", "{", "3", '{"token": "../.."}', '{"token": 3, "document": {}, "form": []}', f'"{token}"'):
        found, values = handlers.restored(root, bad, fresh := new_token())
        assert found == fresh and values["image"] is None and values["form"] == {} and "document" not in values


def test_errors_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    for path in (tmp_path / "sessions" / new_token() / "a b.png", Path(tempfile.gettempdir()) / "uploads" / "a b.png"):
        found = handlers.problem(InputError(f"{path} is broken;\nsee {path}: 1/2"), tmp_path)
        assert found == {"status": "a b.png is broken; see a b.png: 1/2"}


def test_commands_are_for_the_folder_of_the_studio(
    session: tuple[Path, str], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, token = session
    prepared = handlers.prepare(engine, session_folder(root, token), form_of(engine), TRACKS)
    job, out = handlers.start(engine, root, prepared, "paper")
    monkeypatch.chdir(root)
    command = shlex.split(handlers.command_of(engine, job.request, "paper", low_memory=False))
    assert command[command.index("--image") + 1] == f"jobs/{out.name}/condition.png"
    assert command[command.index("--tracks") + 1] == f"jobs/{out.name}/tracks.json"


def test_previews_are_rows_of_eight() -> None:
    frames = torch.rand(10, 3, 4, 6)
    picture = strip(frames)
    assert picture.shape == (2 * 4 * 13, 8 * 6 * 13, 3)
    assert (picture[4 * 13 :, 2 * 6 * 13 :] == 0).all()


# proposals


@given(seed=st.integers(0, 999), x=st.integers(0, 8), y=st.integers(0, 6))
def test_proposals_are_connected_parts(seed: int, x: int, y: int) -> None:
    measure = pytest.importorskip("skimage.measure", reason="scikit-image is missing")
    labels = np.random.default_rng(seed).integers(0, 2, (7, 9))
    parts = measure.label(labels, connectivity=1, background=-1)
    mask = connected(labels, x, y)
    assert (mask == (parts == parts[y, x])).all()
    entry: Any = proposal(torch.from_numpy(labels), x + 0.5, y + 0.5)
    assert (decode(entry["mask"], "mask") == mask).all()
    x0, y0, x1, y1 = entry["keyframes"][0]["box"]
    (px, py) = entry["points"][0]
    assert mask[int(py), int(px)] and x0 <= px <= x1 and y0 <= py <= y1


def test_clicks_beside_the_image_are_refused() -> None:
    for x, y in ((-1, 0), (0, 9), (9, 0), (float("nan"), 0)):
        with pytest.raises(InputError, match="outside of the image"):
            proposal(torch.zeros(9, 9, dtype=torch.long), x, y)


def test_masks_of_files_are_reduced() -> None:
    mask = np.zeros((1000, 2000), dtype=bool)
    mask[250:500, 500:1000] = True
    entry: Any = mask_entry(mask, 64, 32)
    assert max(entry["mask"]["size"]) == MASK_SIDE
    np.testing.assert_allclose(entry["box"], (16, 8, 32, 16), atol=0.2)


# the command


def test_the_command_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = cli.parse(["studio", "--port", "0", "--out", str(tmp_path)])
    assert isinstance(command, Studio)
    with pytest.raises(InputError, match="--port 0"):
        command.run()
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'anyi2v\[studio\]'"):
        cli.parse(["studio"]).run()


def scripts() -> Iterator[Path]:
    folder = Path(server.__file__).parent
    yield from (*folder.glob("*.js"), *folder.glob("*.html"), *folder.glob("*.css"))


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_no_text_becomes_code(path: Path) -> None:
    """Templates of gr.HTML are JavaScript templates; and what a user writes is set as text only."""
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3\.org/2000/svg)", text
    )
    if path.suffix != ".js":
        assert not re.search(r"\$\{|`|\{\{", text)
