"""The hooks of the documentation site (docs/site_hooks.py); `make docs` builds the site itself."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(uri: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri))


@pytest.mark.parametrize(
    ("uri", "link", "found"),
    [
        ("gpu.md", "../benchmarks/results/gpu/animatediff.md", "repository/benchmarks/results/gpu/animatediff.md"),
        ("claims/kinds.md", "../../README.md", "../repository/README.md"),
        ("repository/README.md", "docs/gpu.md#memory", "../gpu.md#memory"),
        ("gpu.md", "performance.md#on-a-gpu", "performance.md#on-a-gpu"),
        ("gpu.md", "https://arxiv.org", "https://arxiv.org"),
        ("gpu.md", "missing.md", "missing.md"),  # left to the strict build, which refuses it
    ],
)
def test_links_lead_to_the_same_files_as_in_the_repository(hooks: ModuleType, uri: str, link: str, found: str) -> None:
    assert hooks.on_page_markdown(f"see [this]({link}).", page(uri)) == f"see [this]({found})."


def test_sources_are_shown_without_docstrings(hooks: ModuleType) -> None:
    comments = re.findall(r"^<!-- source: .* -->$", (DOCS / "concepts.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(comments) >= 12
    for comment in comments:
        name = comment.split()[3].split(".")[-1]
        shown = hooks.on_page_markdown(comment, page("concepts.md"))
        assert f"def {name}(" in shown and '"""' not in shown
    with pytest.raises(PluginError, match="has no nothing"):
        hooks.on_page_markdown("<!-- source: src/anyi2v/diffusion.py nothing -->", page("concepts.md"))


def test_formulas_need_no_script(hooks: ModuleType) -> None:
    made = hooks.on_page_content(r'<p><span class="arithmatex">\(a &lt; z_t\)</span></p>')
    assert made.startswith("<p><math") and 'display="inline"' in made and "arithmatex" not in made


@pytest.mark.parametrize(
    ("tag", "remote"),
    [
        ('<script src="https://example.org/a.js"></script>', True),
        ("<script src=//example.org/a.js></script>", True),
        ('<link rel="stylesheet" href="https://example.org/a.css">', True),
        ('<img alt="x" src="http://example.org/a.png">', True),
        ('<script src="assets/a.js"></script><link href="../a.css">', False),
        ('<a href="https://arxiv.org/abs/2507.02857">paper</a>', False),
    ],
)
def test_pages_that_load_from_elsewhere_are_refused(hooks: ModuleType, tag: str, remote: bool) -> None:
    if remote:
        with pytest.raises(PluginError, match="must work offline"):
            hooks.on_post_page(tag, page("index.md"))
    else:
        hooks.on_post_page(tag, page("index.md"))
