import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Sums in one order everywhere, and workers that do not fight for cores."""
    torch.set_num_threads(1)
