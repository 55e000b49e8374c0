"""Serving the page: on this machine only, without anything that asks another one."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anyi2v.batch.work import Machine
from anyi2v.errors import InputError
from anyi2v.files import check_place, expanded

HOST = "127.0.0.1"
MAX_UPLOAD = 64 << 20
"""Bytes of a file."""


def check_gradio() -> None:
    """Raises InputError naming the extra unless gradio is installed."""
    if find_spec("gradio") is None:
        raise InputError("the studio needs gradio: pip install 'anyi2v[studio]'")


def serve(backbone: str, machine: Machine, root: Path, port: int | None, *, wait: bool = True) -> tuple[Any, str]:
    """Serves the studio; returns its blocks and its address when it ends, or at once.

    Args:
        backbone: name of a shipped one, or a file.
        machine: where jobs are computed.
        root: folder for sessions, jobs and runs.
        port: None: the first free one from 7860.
        wait: until the process is interrupted.

    Raises InputError if gradio is missing or the port is taken, ResourceError if the folder cannot be written.
    """
    check_gradio()
    root = expanded(root).absolute()
    check_place(root)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="anyi2v-studio-")
    import gradio as gr

    from anyi2v.studio.engine import Engine
    from anyi2v.studio.page import build
    from anyi2v.studio.wiring import Wiring

    engine = Engine(backbone, machine)
    blocks, parts = build(engine.config)
    Wiring(blocks, parts, engine, root).connect()
    root.mkdir(parents=True, exist_ok=True)
    blocks.queue(api_open=False, default_concurrency_limit=8)
    try:
        blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            show_error=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(root)],
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme(gr),
            css=(Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
        )
    except OSError as error:
        raise InputError(f"--port {port} cannot be used: {error}; give another one") from error
    address = f"http://{HOST}:{blocks.server_port}/"
    print(f"studio: {address} (Ctrl-C ends it); runs are written to {root / 'runs'}", flush=True)
    if wait:
        blocks.block_thread()
    return blocks, address


def theme(gr: Any) -> Any:
    """Fonts of the system, so that none is fetched, and colours of enough contrast in light and dark."""
    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"], spacing_size="sm"
    )
