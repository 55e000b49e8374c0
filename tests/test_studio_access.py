"""The middleware of the page: what is refused, and that everything else arrives unchanged."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.studio.access import UPLOAD, Access, Message, Receive, Send


def ask(folder: Path, path: str, parts: tuple[bytes, ...] = (b"",), method: str = "GET") -> tuple[int, bytes]:
    """Status of a request, and the body that reaches the application behind the middleware."""
    arrived, sent = list[bytes](), list[Message]()
    waiting = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            arrived.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Message = {"type": "http", "method": method, "path": path}
    asyncio.run(Access(app, folder)(scope, receive, send))
    return sent[0]["status"], b"".join(arrived)


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/gradio_api/file/"])
def test_only_shown_files_are_served(tmp_path: Path, route: str) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "0a").mkdir(parents=True)
    (uploads / "0a" / "video.mp4").touch()
    (tmp_path / "secret.txt").touch()
    (uploads / "link").symlink_to(tmp_path / "secret.txt")
    assert ask(uploads, f"{route}{uploads}/0a/video.mp4")[0] == 200
    for path in (
        *(f"{tmp_path}/secret.txt", f"{uploads}/../secret.txt", f"{uploads}/link", "/etc/passwd", "secret.txt", ""),
        *("http://127.0.0.1:1/", "HTTPS://example.org/", "http:/example.org", "a\0b", "a" * 5000, f"{uploads}-other/a"),
    ):
        assert ask(uploads, route + path)[0] == 403, path


def test_files_are_not_fetched_from_addresses(tmp_path: Path) -> None:
    file = b'{"data": [{"a": [{"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}]}]}'
    for body in (file, file.replace(b"http", b"\\u0068ttp"), file.replace(b'"path"', b'"pat\\u0068"')):
        assert ask(tmp_path, "/gradio_api/queue/join", (body[:20], body[20:]), "POST") == (403, b"")
    repeated = b'{"path": "http://example.org", "path": "a.png"}'
    assert ask(tmp_path, "/gradio_api/queue/join", (repeated,), "POST")[0] == 403
    assert ask(tmp_path, "/gradio_api/queue/join", (b"[" * 100_000,), "POST")[0] == 403


JSON: Any = st.binary(max_size=20) | st.sampled_from(
    [b'{"path": "/tmp/a.png", "url": "http://127.0.0.1/a.png"}', b'{"prompt": "http://example.org"}']
)


@given(body=JSON, cut=st.integers(0, 20))
def test_other_requests_arrive_unchanged(tmp_path_factory: pytest.TempPathFactory, body: bytes, cut: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert ask(folder, "/gradio_api/queue/join", (body[:cut], body[cut:] + b" "), "POST") == (200, body + b" ")
    content = b'{"path": "http://example.org"}'  # the content of an uploaded track file, say
    assert ask(folder, UPLOAD, (content,), "POST") == (200, content)
