"""Shared parts of all pages: their Jinja templates, escaped and strict about missing values, and pictures in them."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from anyi2v.errors import InputError
from anyi2v.files import replaceable

if TYPE_CHECKING:
    from jinja2 import Template

TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}


def load_template(path: Path) -> "Template":
    """Load a page's template, which may include files next to it and begins with `head.html`.

    Args:
        path: file of the template; everything that it is rendered with is escaped.
    """
    # here, because it takes a tenth of a second and most commands write no page
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["px"] = lambda value: f"{value:.1f}"
    return environment.get_template(path.name)


def jpeg_uri(image: Image.Image) -> str:
    """Encode an image as the data URI of a JPEG."""
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def file_uri(path: Path) -> str:
    """Read a file of a run as a data URI; raises InputError naming the file if it is not readable."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}, a part of the run: {error.strerror}") from error
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}"


def check_written_by(path: Path, mark: str, writer: str) -> None:
    """Raise InputError if a file exists and does not begin with the mark of its writer."""
    if not replaceable(path, mark):
        raise InputError(f"{path} exists and was not written by {writer}; move it away, or give another --out")
