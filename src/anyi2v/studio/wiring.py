"""Event handling of the page: components' events call `handlers`; errors become one line in the status."""

import json
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from anyi2v.comparators.settings import SETTINGS
from anyi2v.studio import handlers
from anyi2v.studio.engine import Engine
from anyi2v.studio.events import Changes, Values, incoming
from anyi2v.studio.image_events import ImageEvents
from anyi2v.studio.page import SOURCE, Parts, of_settings
from anyi2v.studio.run_events import RunEvents

FORM = ("prompt", "negative_prompt", "seed", "frames", "fps", "sampler", "recipe", "method")
"""Fields of the form other than the settings of methods."""
RESTORE = "() => [sessionStorage.getItem('anyi2v-studio') || '']"
KEEP = """(value) => {
  try {
    const kept = JSON.parse(sessionStorage.getItem('anyi2v-studio') || '{}');
    kept.form = {...kept.form, [NAME]: value};
    sessionStorage.setItem('anyi2v-studio', JSON.stringify(kept));
  } catch {}
  return [];
}"""
"""Script that saves a field in the tab's session storage."""
Act = Callable[[Values], Changes]
WORK: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work"}
"""Event options: computations run one at a time."""


class Wiring:
    """Event handlers of a page.

    Args:
        blocks: blocks returned by `anyi2v.studio.page.build`.
        parts: components returned by the same function.
        engine: runs the computations.
        root: the studio's folder.
    """

    def __init__(self, blocks: Any, parts: Parts, engine: Engine, root: Path):
        self.blocks, self.parts, self.root = blocks, parts, root
        self.form = [*FORM, *of_settings(parts)]
        for name in SETTINGS:
            self.form += of_settings(parts, f"{name}.")
        self.images, self.runs = ImageEvents(engine, root, self.form), RunEvents(engine, root, self.form)
        self.names = {part: name for name, part in parts.items()}

    def connect(self) -> None:
        """Connect all events."""
        parts, on, images, runs = self.parts, self._on, self.images, self.runs
        with self.blocks:
            everything = ["token", "editor", *self.form, "former", "other", "status"]
            self.blocks.load(self._told(images.restore), {parts["saved"]}, self._parts(everything), js=RESTORE)
            for name in self.form:
                parts[name].change(None, [parts[name]], [], js=KEEP.replace("NAME", json.dumps(name)))
            source = [*of_settings(parts, SOURCE), "image", "layer", "layer_mask"]
            drawn = ["editor", "status"]
            on(parts["image"].upload, images.image, ["token", *source], drawn)
            on(parts["apply"].click, images.image, ["token", *source], drawn)
            on(parts["example"].input, images.example, ["token", "example"], [*drawn, "prompt", "image"])
            on(parts["import"].upload, images.imported, ["token", "import", "frames"], drawn)
            on(parts["mask"].upload, images.mask, ["token", "mask"], drawn)
            on(parts["export"].click, images.export, ["token", "editor"], ["exported", "status"])
            on(parts["frames"].change, images.frames, ["frames", "editor"], drawn)
            on(parts["recipe"].input, runs.recipe, ["recipe"], list(of_settings(parts)))
            on(parts["method"].change, runs.method, ["method"], [f"{name} settings" for name in SETTINGS])
            on(parts["former"].input, runs.former, ["former", "other"], ["video_a", "differences"])
            on(parts["other"].input, runs.former, ["former", "other"], ["video_a", "video_b", "differences"])
            on(parts["load"].click, runs.load, ["token", "former"], [*drawn, *self.form])
            # in two events: after the second one, only the job itself changes the status
            said = parts["cancel"].click(lambda: "cancelling ...", None, parts["status"], queue=False)
            on(said.then, runs.cancel, ["token"], ["status"], queue=False)
            self._connect_work(drawn)

    def _connect_work(self, drawn: list[str]) -> None:
        parts, inputs, runs = self.parts, ["token", "editor", *self.form], self.runs
        shown = ["status", "progress", "preview", "tabs", "video", "beside", "pictures", "command", "files"]
        armed = parts["run"].click(self._told(runs.arm), {parts["token"]}, self._parts(["status"]), queue=False)
        armed.then(
            self._told_stepwise(runs.run),
            set(self._parts([*inputs, "inspect"])),
            self._parts([*shown, "former", "other"]),
            show_progress="hidden",
            **WORK,
        )
        self._on(parts["estimate"].click, runs.estimate, inputs, ["status"], **WORK)
        parts["editor"].pick(
            self._picked(),
            self._parts(["token", "prompt", "clusters"]),
            self._parts(drawn),
            show_progress="hidden",
            **WORK,
        )

    def _parts(self, names: list[str]) -> list[Any]:
        return [self.parts[name] for name in names]

    def _on(
        self, event: Callable[..., Any], act: Callable[[Values], Changes], read: list[str], write: list[str], **how: Any
    ) -> None:
        """Connect an event to `act`, which maps values of components to updates of others, both by name."""
        event(self._told(act), set(self._parts(read)), self._parts(write), show_progress="hidden", **how)

    def _told(self, act: Act) -> Callable[[Any], Any]:
        @wraps(act)
        def told(data: Any) -> Any:
            try:
                return self._changes(act({self.names[part]: value for part, value in data.items()}))
            except Exception as error:  # the page must survive any error
                return self._changes(handlers.problem(error, self.root))

        return told

    def _told_stepwise(self, act: Callable[[Values], Iterator[Changes]]) -> Callable[[Any], Iterator[Any]]:
        @wraps(act)
        def told(data: Any) -> Iterator[Any]:
            try:
                for changes in act({self.names[part]: value for part, value in data.items()}):
                    yield self._changes(changes)
            except Exception as error:
                yield self._changes({**handlers.problem(error, self.root), "progress": {"share": 0}})

        return told

    def _changes(self, changes: Changes) -> Any:
        if not changes:  # gradio takes an empty dictionary for a value
            return gr.skip()
        return {self.parts[name]: value for name, value in changes.items()}

    def _picked(self) -> Callable[..., Any]:
        def pick(token: str, prompt: str, clusters: float, event: gr.EventData) -> Any:
            try:
                at = float(event.x), float(event.y)
                changes = self.images.pick({"token": token, "prompt": prompt, "clusters": clusters}, at)
            except Exception as error:
                changes = handlers.problem(error, self.root)
                changes["editor"] = incoming(words=changes["status"])
            return self._changes(changes)

        return pick
