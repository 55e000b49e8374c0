"""Workers of ray: results, deaths, and batches whose processes are killed.

GPUs are pretended: ray counts them, and jobs are computed on the CPU.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from anyi2v import cli
from anyi2v.checkpoints.checkpoint import save
from anyi2v.errors import InputError
from anyi2v.execution.cluster import ALONE, DEATHS, ENVIRONMENT, Death, Workers, spread
from anyi2v.images.media import write_image
from anyi2v.reports.folder import NEW, discard

from .networks import tiny_backbone
from .noting import noting
from .test_batch import OWN, contents

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

ROOT = Path(__file__).parents[1]

# workers


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two processors and two pretended GPUs, kept for all tests."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        for name, value in (ENVIRONMENT | ALONE).items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def begun(folder: Path, item: str) -> int:
    return len(list(folder.glob(f"{item}-*")))


@pytest.mark.usefixtures("cluster")
def test_each_item_has_its_result_and_each_worker_a_gpu_of_its_own(tmp_path: Path) -> None:
    items = [f"item{number}" for number in range(8)]
    found = list(spread(noting(tmp_path), items, Workers(gpus=1)))
    assert sorted(item for item, _ in found) == items
    results = [result for _, result in found if not isinstance(result, Death)]
    assert [result[0] for result in results] == [item for item, _ in found]
    gpus = {pid: {gpu for _, p, gpu, _ in results if p == pid} for _, pid, _, _ in results}
    assert sorted(gpus.values(), key=str) == [{"0"}, {"1"}]
    assert {threads for *_, threads in results} == {1}
    assert all(begun(tmp_path, item) == 1 for item in items)


@pytest.mark.usefixtures("cluster")
def test_death_is_tried_again_a_few_times_and_costs_no_other(tmp_path: Path) -> None:
    items = ["deadly", "once", "a", "b", "c"]
    found = dict(spread(noting(tmp_path), items, Workers(2)))
    assert {item: isinstance(result, Death) for item, result in found.items()} == {
        item: item == "deadly" for item in items
    }
    assert isinstance(found["deadly"], Death) and f"died {DEATHS} times" in found["deadly"].message
    assert {item: begun(tmp_path, item) for item in items} == {"deadly": DEATHS, "once": 2, "a": 1, "b": 1, "c": 1}


@pytest.mark.usefixtures("cluster")
def test_what_an_item_raises_ends_it_and_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^a mistake$"):
        list(spread(noting(tmp_path), ["a", "wrong", "b", "c"], Workers(1)))
    assert [begun(tmp_path, item) for item in ("a", "wrong", "b", "c")] == [1, 1, 0, 0]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (Workers(3), "not enough resources for --workers 3: at most 2 with 1 threads each"),
        (Workers(2, threads=2), "not enough resources for --workers 2: at most 1 with 2 threads each"),
        (Workers(threads=3), "not enough resources for a worker: at most 0 with 3 threads each"),
        (Workers(3, gpus=1), "not enough resources for --workers 3: at most 2 with 1 threads and 1 GPU each"),
    ],
)
def test_workers_without_room_are_refused(tmp_path: Path, workers: Workers, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(spread(noting(tmp_path), ["a"], workers))
    assert not begun(tmp_path, "a")


def test_nothing_needs_no_cluster_and_without_ray_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(spread(lambda: abs, [], Workers())) == []
    with pytest.raises(InputError, match=r"several workers need ray: pip install 'anyi2v\[cluster\]'"):
        list(spread(lambda: abs, [1], Workers()))


# batches

COUNT = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of jobs of a small backbone, with what it needs."""
    folder = tmp_path_factory.mktemp("files")
    save(tiny_backbone(), folder / "tiny.safetensors")
    write_image(folder / "edge.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    line = {"image": "edge.png", "prompt": "a red ball", "name": "job", "seed": f"0..{COUNT - 1}"}
    line |= {"backbone": "tiny.safetensors", "method": OWN}
    (folder / "jobs.jsonl").write_text(json.dumps(line))
    return folder


def batch(files: Path, out: Path, *flags: str) -> list[str]:
    return ["batch", str(files / "jobs.jsonl"), "--out", str(out), "--dtype", "float32", *flags]


@pytest.fixture(scope="module")
def alone(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The runs that one process makes."""
    out = tmp_path_factory.mktemp("alone")
    assert cli.main(batch(files, out, "--threads", "1")) == 0
    return {path.name: contents(path) for path in out.iterdir() if path.is_dir()}


PROGRAM = """
import sys
import ray
from anyi2v.cli import batch, main
from anyi2v.execution.cluster import Workers

ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
batch.workers_of = lambda *_: Workers(gpus=1)  # which are pretended: jobs are computed on the CPU
make = batch._maker

def deadly(*args, **options):
    import os
    import anyi2v.pipeline
    animate = anyi2v.pipeline.animate

    def kills(*args, seed, **options):
        if seed == 3:
            os.kill(os.getpid(), 9)  # as the kernel does with a process that takes too much memory
        return animate(*args, seed=seed, **options)

    anyi2v.pipeline.animate = kills
    return make(*args, **options)

if "deadly" in sys.argv:
    batch._maker = deadly
    sys.argv.remove("deadly")
sys.exit(main(sys.argv[1:]))
"""


def start(*args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT, **ALONE}
    )


def workers(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Those that are making a job."""
    found = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in found if process.name().startswith("ray::_Worker.run")]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def listening(process: psutil.Process) -> list[Any]:
    return [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]


def whole(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("*/run.json")}


def test_whatever_is_killed_every_job_is_made_once(
    files: Path, tmp_path: Path, alone: dict[str, dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    # one worker is killed from outside, one job kills its worker each time
    driver = start("deadly", *batch(files, out))
    wait_for(lambda: whole(out))
    victim = wait_for(lambda: workers(driver))[0]
    victim.kill()
    said, log = driver.communicate(timeout=180)
    assert driver.returncode == 1, log
    assert f"{COUNT - 1} made, 0 were there, 1 failed" in said
    error = json.loads((out / "job-s3" / "error.json").read_text())
    assert error["kind"] == "ResourceError" and f"its worker died {DEATHS} times" in error["message"]
    assert [path.name for path in (out / "job-s3").iterdir()] == ["error.json"]
    assert {name: contents(out / name) for name in whole(out)} == {k: v for k, v in alone.items() if k != "job-s3"}

    # the process that the user sees is killed
    for name in ("job-s1", "job-s5", "job-s7", "job-s8", "job-s9", "job-s10"):
        (out / name / "run.json").unlink()
        for path in (out / name).iterdir():
            path.unlink()
    before = {name: (out / name / "run.json").stat().st_mtime_ns for name in whole(out)}
    driver = start(*batch(files, out))
    wait_for(lambda: len(whole(out)) > len(before))
    left = workers(driver)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in left))
    there = {name: (out / name / "run.json").stat().st_mtime_ns for name in whole(out)}
    assert before.items() <= there.items() and len(before) < len(there) < COUNT

    driver = start(*batch(files, out))
    said, log = driver.communicate(timeout=180)
    assert driver.returncode == 0, log
    assert f"{COUNT - len(there)} made, {len(there)} were there, 0 failed" in said
    assert there.items() <= {name: (out / name / "run.json").stat().st_mtime_ns for name in whole(out)}.items()
    assert {path.name: contents(path) for path in out.iterdir() if path.is_dir()} == alone


def test_ctrl_c_ends_the_workers_and_leaves_whole_runs_only(
    files: Path, tmp_path: Path, alone: dict[str, dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", "import sys; from anyi2v.cli import main; sys.exit(main(sys.argv[1:]))"]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background has it ignored
    try:
        driver = subprocess.Popen(
            [*command, *batch(files, out, "--workers", "2")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    wait_for(lambda: whole(out))
    family = psutil.Process(driver.pid).children(recursive=True)
    ports = {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for p in family for c in listening(p)}
    assert {ip for ip, _ in ports} == {"127.0.0.1"}
    # ray has a process of this name in any case; without a dashboard it serves no page
    assert not any(listening(p) for p in family if any("dashboard.py" in word for word in p.cmdline()))
    driver.send_signal(signal.SIGINT)
    _, log = driver.communicate(timeout=60)
    assert driver.returncode == 130, log
    assert log.splitlines()[-1].startswith("anyi2v: interrupted; ") and "Traceback" not in log
    runs = {path.name: contents(path) for path in out.iterdir() if path.is_dir()}
    assert runs and runs.items() <= alone.items() and len(runs) < COUNT
    wait_for(lambda: not any(p.is_running() and p.name().startswith("ray::_Worker") for p in family))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers", "0"], "--workers 0 is not allowed; it must be 1 to"),
        (["--workers", "2", "--device", "cuda:1"], "--device cuda:1 is not allowed with workers"),
        (["--workers", "2", "--threads", "0"], "--threads 0 is not allowed; it must be 1 to"),
    ],
)
def test_impossible_workers_are_refused_before_any_work(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert cli.main(batch(files, tmp_path / "out", *flags)) == 2
    assert re.search(re.escape(said), capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_is_discarded(tmp_path: Path) -> None:
    (tmp_path / "a" / NEW).mkdir(parents=True)
    (tmp_path / "a" / NEW / "video.gif").touch()
    discard(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b" / NEW).mkdir(parents=True)
    (tmp_path / "b" / "notes.txt").touch()
    discard(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("cluster")
def test_a_running_cluster_is_joined_and_an_absent_one_is_said(
    files: Path, tmp_path: Path, alone: dict[str, dict[str, bytes]]
) -> None:
    import ray

    line = json.loads((files / "jobs.jsonl").read_text()) | {"seed": [0, 1]}
    (files / "two.jsonl").write_text(json.dumps(line))
    out = tmp_path / "out"
    command = [sys.executable, "-c", "import sys; from anyi2v.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["batch", str(files / "two.jsonl"), "--dtype", "float32"]
    absent = tmp_path / "absent"
    for folder, address, code in ((out, ray.get_runtime_context().gcs_address, 0), (absent, "127.0.0.1:1", 2)):
        flags = ["--out", str(folder), "--address", address]
        ended = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=180, env=os.environ.copy())
        assert ended.returncode == code, ended.stderr
    assert not absent.exists()
    assert "anyi2v: error: there is no ray cluster at --address 127.0.0.1:1" in ended.stderr
    assert {path.name: contents(path) for path in out.iterdir() if path.is_dir()} == {
        name: alone[name] for name in ("job-s0", "job-s1")
    }
