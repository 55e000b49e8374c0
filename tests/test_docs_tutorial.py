"""docs/tutorial.ipynb: its code runs and shows what the text says; docs/tutorial.md names the files of a run."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from anyi2v.reports.folder import RUN_FILES

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

DOCS = Path(__file__).parents[1] / "docs"
CELLS = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_notebook_shows_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    result, free = names["result"], names["free"]
    assert names["error"](result).mean() < 2
    assert names["error"](free).mean() > 3 * names["error"](result).mean()
    assert torch.equal(names["watched"].video, result.video)
    assert names["colours"].shape == (8, 16, 16, 3)
    assert ((names["change"] > 0.2) & (names["change"] < 0.5)).all()


def test_the_notebook_is_stored_without_outputs() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code")


def test_its_links_lead_to_pages() -> None:
    links = [link for cell in CELLS for link in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"]))]
    assert len(links) == 3
    assert all((DOCS / link).is_file() for link in links)


def test_it_names_all_files_of_a_run() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    table = text.split("## The files of a run")[1].split("\n\n")[1]
    assert set(re.findall(r"`([\w.]+\.\w+)`", table)) == set(RUN_FILES)
