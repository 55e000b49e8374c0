import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings

from anyi2v.execution import memory

if not torch.cuda.is_available():
    # the kernels for GPUs are run by Triton's interpreter; Triton asks when it is imported, by whomever
    os.environ["TRITON_INTERPRET"] = "1"

# tests share cores with each other: how long an example takes says nothing
settings.register_profile("tests", settings(), deadline=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden" / "data",
        help="folder of recordings of the published code, in the layout of tests/golden/data",
    )
    parser.addoption(
        "--operators",
        choices=("fast", "reference"),
        default="fast",
        help="what every network of the run computes by: the fastest implementations, or the formulas alone",
    )


@pytest.fixture(autouse=True, scope="session")
def _operators(pytestconfig: pytest.Config) -> Iterator[None]:
    """Under `--operators reference` networks, and layers outside of any, compute by the formulas whatever they say."""
    if pytestconfig.getoption("--operators") == "fast":
        yield
        return
    from anyi2v.backbone.text import TextTower
    from anyi2v.backbone.unet import UNet
    from anyi2v.backbone.vae import AutoencoderKL
    from anyi2v.operators import using

    with pytest.MonkeyPatch.context() as patch, using("reference"):
        for network in (UNet, AutoencoderKL, TextTower):
            patch.setattr(network, "operators", property(lambda self: "reference", lambda self, kind: None))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Sums in one order everywhere, and workers that do not fight for cores."""
    torch.set_num_threads(1)


@pytest.fixture
def arrays_unchecked() -> Iterator[None]:
    """For whole jobs of the shipped backbones that ask how good a video is: checks of shapes are a third of their time.

    The other tests have all functions of such jobs checked.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, the same for all of its workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _each_prediction_once() -> Iterator[None]:
    """The command predicts the memory of its job: of equal jobs once, for it takes longer than most of them.

    Tests of the prediction itself have it from `anyi2v.execution.memory` before this.
    """
    known: dict[bytes, memory.Prediction] = {}
    predict = memory.predict

    def predicted(*args: Any, **options: Any) -> memory.Prediction:
        job = pickle.dumps((args, options))
        if job not in known:
            known[job] = predict(*args, **options)
        return known[job]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "predict", predicted)
        yield
