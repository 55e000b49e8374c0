"""Shared parts of all pages: their Jinja templates, escaped and strict about missing values, and pictures in them."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image


def load_template(path: Path) -> Template:
    """Load a page's template, which may include files next to it and begins with `head.html`.

    Args:
        path: file of the template; everything that it is rendered with is escaped.
    """
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
