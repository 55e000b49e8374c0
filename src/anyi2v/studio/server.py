"""Server of the page: local connections only, and no requests to other machines."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anyi2v.batch.work import Machine
from anyi2v.errors import InputError
from anyi2v.files import check_place, expanded

HOST = "127.0.0.1"
HERE = Path(__file__).parent
MAX_UPLOAD = 64 << 20
"""Maximum size of an uploaded file, in bytes."""
CLOSED: dict[str, Any] = {
    **{"server_name": HOST, "share": False, "pwa": False, "mcp_server": False, "enable_monitoring": False},
    **{"ssr_mode": False, "footer_links": [], "quiet": True, "prevent_thread_lock": True, "max_file_size": MAX_UPLOAD},
    "run_history": False,
}
"""Launch options that serve the page to this machine only, without any further services."""


def check_gradio() -> None:
    """Raise InputError naming the extra unless gradio is installed."""
    if find_spec("gradio") is None:
        raise InputError("the studio needs gradio: pip install 'anyi2v[studio]'")


@contextmanager
def served(backbone: str, machine: Machine, root: Path, port: int | None = None) -> Iterator[tuple[Any, str]]:
    """Serve the studio inside the `with` block; yields its blocks and its address.

    Args:
        backbone: name of a shipped backbone, or a file.
        machine: device and precision of jobs.
        root: folder for sessions, jobs and runs.
        port: port of the page; None: the first free one from 7860.

    Raises:
        InputError: gradio is missing or the port is taken.
        ResourceError: the folder cannot be written.
    """
    check_gradio()
    root = expanded(root).absolute()
    check_place(root)
    with tempfile.TemporaryDirectory(prefix="anyi2v-studio-") as uploads:
        # read when gradio is imported, and at each upload
        os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_TEMP_DIR"] = "False", uploads
        import gradio as gr
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from anyi2v.studio.access import Access
        from anyi2v.studio.engine import Engine
        from anyi2v.studio.page import build
        from anyi2v.studio.wiring import Wiring

        engine = Engine(backbone, machine)
        blocks, parts = build(engine.config)
        Wiring(blocks, parts, engine, root).connect()
        root.mkdir(parents=True, exist_ok=True)
        blocks.queue(api_open=False, default_concurrency_limit=8)
        look: dict[str, Any] = {"theme": theme(gr), "css": (HERE / "page.css").read_text(encoding="utf-8")}
        # web pages of others reach a local server under a host name of their own
        guards = [Middleware(TrustedHostMiddleware, [HOST, "localhost"]), Middleware(Access, Path(uploads))]
        shown = [str(root / name) for name in ("sessions", "jobs", "runs")]
        try:
            blocks.launch(server_port=port, allowed_paths=shown, app_kwargs={"middleware": guards}, **look, **CLOSED)
        except OSError as error:
            raise InputError(f"--port {port} cannot be used: {error}; give another one") from error
        try:
            yield blocks, f"http://{HOST}:{blocks.server_port}/"
        finally:
            blocks.close(verbose=False)


def theme(gr: Any) -> Any:
    """Theme with system fonts, so that none is downloaded, and sufficient contrast in light and dark mode."""
    fonts = ["system-ui", "sans-serif"]
    found = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"], spacing_size="sm"
    )
    edges = {f"{kind}_border_color{mode}": "*neutral_500" for kind in ("input", "checkbox") for mode in ("", "_dark")}
    return found.set(**edges, body_text_color_subdued="*neutral_600", button_primary_background_fill="*primary_600")
