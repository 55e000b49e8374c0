"""What all events of the page share: values and updates of components by name, and the session's folder."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from anyi2v.studio.engine import Engine
from anyi2v.studio.workspace import session_folder

Values = Mapping[str, Any]
Changes = dict[str, Any]
"""Updates of components, by name."""


def content(**parts: Any) -> dict[str, Any]:
    """Return a value of the editor's property `incoming`, different from all former ones."""
    return {"id": uuid.uuid4().hex, **parts}


def incoming(**parts: Any) -> Any:
    """Return an update that passes content to the editor."""
    return gr.HTML(incoming=content(**parts))


class Events:
    """Acts of a page.

    Args:
        engine: runs the computations.
        root: the studio's folder.
        form: names of the form's fields.
    """

    def __init__(self, engine: Engine, root: Path, form: list[str]):
        self.engine, self.root, self.form = engine, root, form

    def folder(self, values: Values) -> Path:
        """Return the folder of the session that an event belongs to."""
        return session_folder(self.root, values["token"])
