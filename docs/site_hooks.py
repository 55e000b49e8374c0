"""Hooks of the documentation site (mkdocs.yml): links out of docs/, code beside equations, and formulas as MathML."""

import ast
import html
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "repository/"
"""Folder of the site for files of the repository that lie outside of docs/ and that a page links to."""
CHANGELOG = "CHANGELOG.md"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
SOURCE = re.compile(r"^<!-- source: (\S+) (\S+) -->$", re.MULTILINE)
MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
REMOTE = re.compile(r'<(?:script|img|iframe)\b[^>]*\bsrc="?(?:https?:)?//|<link\b[^>]*\bhref="?(?:https?:)?//')


def on_config(config: MkDocsConfig) -> None:
    """Add the changelog to the navigation if there is one."""
    if (ROOT / CHANGELOG).is_file() and config.nav is not None:
        config.nav.append({"Changelog": OUTSIDE + CHANGELOG})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the files outside of docs/ that pages link to, also those that such files link to."""
    pending = [DOCS / page.src_uri for page in files.documentation_pages()]
    if (ROOT / CHANGELOG).is_file():
        _add(files, config, ROOT / CHANGELOG)
        pending.append(ROOT / CHANGELOG)
    while pending:
        page = pending.pop()
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = _resolved(page, target)
            if path.is_file() and _uri(path).startswith(OUTSIDE) and files.get_file_from_path(_uri(path)) is None:
                _add(files, config, path)
                pending += [path] * (path.suffix == ".md")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the files that `on_files` added, and replace each source comment by the function it names."""
    uri = page.file.src_uri
    here = ROOT / uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS / uri

    def relinked(match: re.Match[str]) -> str:
        path = _resolved(here, match[1])
        if not path.is_file() or not path.is_relative_to(ROOT):
            return match[1]
        return Path(os.path.relpath(_uri(path), Path(uri).parent)).as_posix()

    return SOURCE.sub(lambda match: _source(ROOT / match[1], match[2]), LINK.sub(relinked, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Convert formulas from LaTeX to MathML, which browsers draw without a script."""
    return MATHS.sub(
        lambda match: convert(html.unescape(match[2]), display="inline" if match[1] == "span" else "block"), content
    )


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Refuse a page that would load a script, style, font or picture from another machine."""
    if found := REMOTE.search(output):
        raise PluginError(f"{page.file.src_uri}: the site must work offline, but this page has {found[0]!r}")


def _resolved(page: Path, target: str) -> Path:
    return Path(os.path.normpath(page.parent / target))


def _uri(path: Path) -> str:
    """Return the address of a file of the repository within the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return OUTSIDE + path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def _add(files: Files, config: MkDocsConfig, path: Path) -> None:
    files.append(File.generated(config, _uri(path), abs_src_path=str(path)))


def _source(path: Path, name: str) -> str:
    """Return a function or method, such as `Class.method`, without its docstring, as a block of Python."""
    text = path.read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        if not found:
            raise PluginError(f"{path} has no {name}; a page shows its source")
        node = found[0]
    lines = text.splitlines()
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    first, last = node.lineno - 1, node.end_lineno
    kept = lines[first:last] if doc is None else [*lines[first : doc.lineno - 1], *lines[doc.end_lineno : last]]
    indent = len(kept[0]) - len(kept[0].lstrip())
    return "\n".join(["```python", *(line[indent:] for line in kept), "```"])
