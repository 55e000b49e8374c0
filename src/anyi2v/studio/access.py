"""ASGI middleware of the page: refuses requests for other files than those shown on it, and for other machines.

By itself, gradio serves every file in a folder that components may show files of, and downloads http addresses that a
request names, be it in `file=http://...` or in place of an uploaded file.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
FILE = re.compile(r"/file[=/](.*)", re.DOTALL)
"""Route of files, followed by a path or an address."""
UPLOAD = "/gradio_api/upload"
"""Route of uploads, which contain files and no paths."""


class Access:
    """Middleware that answers forbidden requests with status 403.

    Args:
        app: the application to protect.
        folder: the only folder whose files are served: gradio's copies of what was uploaded and of what components
            show, each in a subfolder named by the checksum of its content.
    """

    def __init__(self, app: App, folder: Path):
        self.app, self.folder = app, folder.resolve()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Forward a request to the application, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if (found := FILE.search(scope["path"])) and not self._shown(found[1]):
            return await _refuse(send, "this file is not shown on the page")
        if scope["method"] == "POST" and scope["path"].rstrip("/") != UPLOAD:
            messages = await _messages(receive)
            if _names_address(b"".join(message.get("body", b"") for message in messages)):
                return await _refuse(send, "files are not fetched from addresses; upload them")
            receive = _replayed(messages, receive)
        return await self.app(scope, receive, send)

    def _shown(self, path: str) -> bool:
        """Whether a path is inside the folder, with all links and ".." resolved."""
        try:
            return Path(os.path.realpath(path)).is_relative_to(self.folder)
        except (OSError, ValueError):  # too long, or with a null character
            return False


async def _messages(receive: Receive) -> list[Message]:
    """Receive a whole request."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """Return a function that receives the messages again, then those that follow them."""
    waiting = iter(messages)

    async def replay() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replay


def _names_address(body: bytes) -> bool:
    """Whether a JSON text may have an address as the path of a file, at any depth."""
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or any(key == "path" and isinstance(value, str) and "://" in value for key, value in pairs)

    try:
        json.loads(body, object_pairs_hook=look)
    except RecursionError:  # too deep to be looked at
        return True
    except ValueError:  # not JSON, which the application refuses
        return False
    return found


async def _refuse(send: Send, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
