"""Each test function asks for the recordings of its kind by `pytest.mark.recordings("letters")`."""

from pathlib import Path

import pytest

from .recordings import Case, cases, load_case


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "recordings(letters): runs once per recorded case of these kinds")


def golden_dir(config: pytest.Config) -> Path:
    folder = config.getoption("--golden-dir")
    assert isinstance(folder, Path)
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("recordings")
    if marker:
        folders = cases(golden_dir(metafunc.config), marker.args[0])
        reason = f"the golden folder has no case of kind {' or '.join(marker.args[0])}"
        # recordings of other kinds may be given with --golden-dir; the skip says in CI which ones are not there
        params = folders or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
        metafunc.parametrize("folder", params, ids=[f.name for f in folders] or ["none"])


@pytest.fixture(scope="session")
def root(request: pytest.FixtureRequest) -> Path:
    """The folder of recordings."""
    return golden_dir(request.config)


@pytest.fixture
def case(folder: Path) -> Case:
    """The recording of the test's folder."""
    return load_case(folder)
