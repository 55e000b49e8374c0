"""Event handling of the page: components' events call `handlers`; errors become one line in the status."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource
from anyi2v.method.recipes import recipe
from anyi2v.studio import handlers
from anyi2v.studio.document import checked, framed, imported
from anyi2v.studio.engine import Engine
from anyi2v.studio.examples import EXAMPLES
from anyi2v.studio.fields import parsed_all
from anyi2v.studio.form import method_form
from anyi2v.studio.page import SOURCE, Parts, of_settings
from anyi2v.studio.proposals import mask_entry, proposal
from anyi2v.studio.workspace import new_token, run_folder, run_names, session_folder
from anyi2v.tracks.masks import read_mask

FORM = ("prompt", "negative_prompt", "seed", "frames", "fps", "sampler", "recipe")
"""Fields of the form other than the method's settings."""
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
Values = Mapping[str, Any]
Changes = dict[str, Any]
"""Updates of components, by name."""
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
        self.blocks, self.parts, self.engine, self.root = blocks, parts, engine, root
        self.form = [*FORM, *of_settings(parts)]
        self.names = {part: name for name, part in parts.items()}

    def connect(self) -> None:
        """Connect all events."""
        parts, on = self.parts, self._on
        with self.blocks:
            everything = ["token", "editor", *self.form, "former", "other", "status"]
            self.blocks.load(self._told(self.restore), {parts["saved"]}, self._parts(everything), js=RESTORE)
            for name in self.form:
                parts[name].change(None, [parts[name]], [], js=KEEP.replace("NAME", json.dumps(name)))
            source = [*of_settings(parts, SOURCE), "image", "layer", "layer_mask"]
            drawn = ["editor", "status"]
            on(parts["image"].upload, self.image, ["token", *source], drawn)
            on(parts["apply"].click, self.image, ["token", *source], drawn)
            on(parts["example"].input, self.example, ["token", "example"], [*drawn, "prompt"])
            on(parts["import"].upload, self.imported, ["token", "import", "frames"], drawn)
            on(parts["mask"].upload, self.mask, ["token", "mask"], drawn)
            on(parts["export"].click, self.export, ["token", "editor"], ["exported", "status"])
            on(parts["frames"].change, self.frames, ["frames", "editor"], drawn)
            on(parts["recipe"].input, self.recipe, ["recipe"], list(of_settings(parts)))
            on(parts["former"].input, self.former, ["former", "other"], ["video_a", "differences"])
            on(parts["other"].input, self.former, ["former", "other"], ["video_a", "video_b", "differences"])
            on(parts["load"].click, self.load, ["token", "former"], [*drawn, *self.form])
            on(parts["cancel"].click, self.cancel, ["token"], ["status"], queue=False)
            self._connect_work(drawn)

    def _connect_work(self, drawn: list[str]) -> None:
        parts, inputs = self.parts, ["token", "editor", *self.form]
        shown = ["status", "progress", "preview", "tabs", "video", "beside", "pictures", "command", "files"]
        armed = parts["run"].click(self._told(self.arm), {parts["token"]}, self._parts(["status"]), queue=False)
        armed.then(
            self._told_stepwise(self.run),
            set(self._parts([*inputs, "inspect"])),
            self._parts([*shown, "former", "other"]),
            show_progress="hidden",
            **WORK,
        )
        self._on(parts["estimate"].click, self.estimate, inputs, ["status"], **WORK)
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
                return self._changes(handlers.problem(error))

        return told

    def _told_stepwise(self, act: Callable[[Values], Iterator[Changes]]) -> Callable[[Any], Iterator[Any]]:
        @wraps(act)
        def told(data: Any) -> Iterator[Any]:
            try:
                for changes in act({self.names[part]: value for part, value in data.items()}):
                    yield self._changes(changes)
            except Exception as error:
                yield self._changes({**handlers.problem(error), "progress": {"share": 0}})

        return told

    def _changes(self, changes: Changes) -> dict[Any, Any]:
        return {self.parts[name]: value for name, value in changes.items()}

    def _incoming(self, **content: Any) -> Any:
        """Return an update that passes content to the editor."""
        return gr.HTML(incoming={"id": uuid.uuid4().hex, **content})

    def _folder(self, values: Values) -> Path:
        return session_folder(self.root, values["token"])

    # the image and the tracks

    def restore(self, values: Values) -> Changes:
        """Restore the state of a reloaded tab, or start a new session."""
        token, found = handlers.restored(self.root, values["saved"], new_token())
        session_folder(self.root, token).mkdir(parents=True, exist_ok=True)
        image, names = found["image"], run_names(self.root)
        scene = {"token": token} if image is None else handlers.scene(image, token)
        content = {"document": found["document"]} if image is not None and "document" in found else {}
        form = {name: value for name, value in found["form"].items() if name in self.form}
        return {
            "token": token,
            "editor": gr.HTML(scene=scene, incoming={"id": token, **content}),
            **form,
            "former": gr.Dropdown(names),
            "other": gr.Dropdown(names),
            "status": "" if image is None else "the work of this tab is there again",
        }

    def image(self, values: Values) -> Changes:
        """Create the condition image from files."""
        if not values["image"]:
            raise InputError("there is no image yet; upload one, or choose an example")
        layers = ()
        if values["layer"]:
            if not values["layer_mask"]:
                raise InputError("the layer has no mask; upload one, white where the layer is seen")
            layers = (f"{values['layer']}:{values['layer_mask']}",)
        settings = parsed_all(ConditionSource, values, SOURCE)
        source = ConditionSource(image=Path(values["image"]), layer=layers, **settings)
        image, words = handlers.use_image(self.engine, self._folder(values), source)
        return {"editor": gr.HTML(scene=handlers.scene(image, values["token"])), "status": words}

    def example(self, values: Values) -> Changes:
        """Load an example's image, prompt and tracks."""
        if values["example"] not in EXAMPLES:  # the first entry is the list's title
            return {}
        image, prompt, document = handlers.use_example(self.engine, self._folder(values), values["example"])
        scene, incoming = handlers.scene(image, values["token"]), {"id": uuid.uuid4().hex, "document": document}
        return {"editor": gr.HTML(scene=scene, incoming=incoming), "prompt": prompt, "status": "example loaded"}

    def imported(self, values: Values) -> Changes:
        """Load tracks from a file."""
        _, fit = handlers.condition_of(self._folder(values))
        kind, document = imported(Path(values["import"]), fit, int(values["frames"]))
        return {"editor": self._incoming(document=document), "status": f"imported: {kind}"}

    def mask(self, values: Values) -> Changes:
        """Load a mask from a file for the selected object."""
        image, _ = handlers.condition_of(self._folder(values))
        entry = mask_entry(read_mask(values["mask"]), image.shape[2], image.shape[1])
        return {"editor": self._incoming(**entry), "status": "mask loaded; it counts inside of the first box"}

    def export(self, values: Values) -> Changes:
        """Write track files."""
        return {"exported": handlers.export(self._folder(values), values["editor"]), "status": "exported"}

    def frames(self, values: Values) -> Changes:
        """Change the number of frames of the tracks."""
        if not values["editor"] or not values["frames"]:
            return {}
        document, _ = checked(values["editor"])
        moved = framed(document, int(values["frames"]))
        return {} if moved is document else {"editor": self._incoming(document=moved)}

    def recipe(self, values: Values) -> Changes:
        """Fill in the settings of a recipe."""
        return dict(method_form(recipe(values["recipe"], self.engine.config.method)))

    def _picked(self) -> Callable[..., Any]:
        def pick(token: str, prompt: str, clusters: float, event: gr.EventData) -> Any:
            try:
                image, _ = handlers.condition_of(session_folder(self.root, token))
                labels = self.engine.segments(image, prompt, int(clusters))
                found = proposal(labels, float(event.x), float(event.y))
                changes = {"editor": self._incoming(object=found, words="proposed: box, mask and point"), "status": ""}
            except Exception as error:
                changes = handlers.problem(error)
                changes["editor"] = self._incoming(words=changes["status"])
            return self._changes(changes)

        return pick

    # jobs

    def arm(self, values: Values) -> Changes:
        """Allow the next job to run."""
        self.engine.arm(values["token"])
        return {"status": "waiting for other jobs ..."}

    def cancel(self, values: Values) -> Changes:
        """Cancel the session's job."""
        self.engine.stop(values["token"])
        return {"status": "cancelling ..."}

    def _prepared(self, values: Values) -> handlers.Prepared:
        form = {name: values[name] for name in self.form}
        return handlers.prepare(self.engine, self._folder(values), form, values["editor"])

    def estimate(self, values: Values) -> Changes:
        """Show what a job would need."""
        prepared = self._prepared(values)
        seconds = self.engine.seconds(prepared.job)
        lines = [f"memory: {prepared.needs}; about {max(1, round(seconds))} s", *prepared.notes]
        return {"status": "\n".join(lines)}

    def run(self, values: Values) -> Iterator[Changes]:
        """Run a job, showing its progress and then its results."""
        prepared = self._prepared(values)
        job, out = handlers.start(self.engine, self.root, prepared, values["recipe"])
        lines = "\n".join([f"memory: {prepared.needs}", *prepared.notes])
        options = {"low_memory": prepared.low_memory, "inspect": bool(values["inspect"])}
        yield {"status": lines, "tabs": gr.Tabs(selected="preview"), "progress": {"share": 0}}
        for said, share, picture in handlers.steps(self.engine, job, out, values["token"], **options):
            if picture is not None:
                yield {"preview": picture}
            else:
                yield {"status": f"{said}\n{lines}", "progress": {"share": round(share, 3)}}
        yield self._finished(job, out, values["recipe"], prepared)

    def _finished(self, job: Any, out: Path, recipe_name: str, prepared: handlers.Prepared) -> Changes:
        names = run_names(self.root)
        command = handlers.command_of(self.engine, job.request, recipe_name, low_memory=prepared.low_memory)
        return {
            "status": "\n".join([f"done: {out}", *prepared.notes]),
            "progress": {"share": 0},
            "tabs": gr.Tabs(selected="video"),
            "video": handlers.video_of(out),
            "beside": handlers.video_of(out, "side_by_side"),
            "pictures": [*handlers.pictures_of(out), *handlers.features_of(out)],
            "command": command,
            "files": handlers.files_of(self.root, out.name),
            "former": gr.Dropdown(names, value=out.name),
            "other": gr.Dropdown(names),
        }

    def former(self, values: Values) -> Changes:
        """Show one or two runs of the list."""
        found: Changes = {"differences": ""}
        for key, name in (("video_a", "former"), ("video_b", "other")):
            if values[name]:
                found[key] = handlers.video_of(run_folder(self.root, values[name]))
        if values["former"] and values["other"]:
            found["differences"] = handlers.compared(self.root, values["former"], values["other"])
        return found

    def load(self, values: Values) -> Changes:
        """Load image, tracks and settings of a run in the list."""
        if not values["former"]:
            raise InputError("choose a run of the list first")
        image, form, document = handlers.load_run(self.root, self._folder(values), values["former"])
        scene, incoming = handlers.scene(image, values["token"]), {"id": uuid.uuid4().hex, "document": document}
        words = f"loaded {values['former']}"
        return {"editor": gr.HTML(scene=scene, incoming=incoming), "status": words, **form}
