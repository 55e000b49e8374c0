"""Events of jobs and their runs, as updates of components by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from anyi2v.comparators.settings import SETTINGS
from anyi2v.errors import InputError
from anyi2v.method.recipes import recipe
from anyi2v.studio import handlers
from anyi2v.studio.events import Changes, Events, Values, content
from anyi2v.studio.form import method_form
from anyi2v.studio.workspace import run_folder, run_names


class RunEvents(Events):
    """Acts that run jobs and show runs."""

    def recipe(self, values: Values) -> Changes:
        """Fill in the settings of a recipe."""
        return dict(method_form(recipe(values["recipe"], self.engine.config.method)))

    def method(self, values: Values) -> Changes:
        """Show the settings of the chosen method."""
        return {f"{name} settings": gr.Group(visible=name == values["method"]) for name in SETTINGS}

    def arm(self, values: Values) -> Changes:
        """Allow the next job to run."""
        self.engine.arm(values["token"])
        return {"status": "waiting for other jobs ..."}

    def cancel(self, values: Values) -> Changes:
        """Cancel the session's job."""
        self.engine.stop(values["token"])
        return {}

    def _prepared(self, values: Values) -> handlers.Prepared:
        form = {name: values[name] for name in self.form}
        return handlers.prepare(self.engine, self.folder(values), form, values["editor"])

    def estimate(self, values: Values) -> Changes:
        """Show what a job would need."""
        prepared = self._prepared(values)
        seconds = max(1, round(self.engine.seconds(prepared.job)))
        time = f"about {seconds} s" if prepared.job.request.comparator is None else f"at least {seconds} s"
        lines = [f"memory: {prepared.needs}; {time}", *prepared.notes]
        return {"status": "\n".join(lines)}

    def run(self, values: Values) -> Iterator[Changes]:
        """Run a job, showing its progress and then its results."""
        yield {"status": "preparing ..."}
        prepared = self._prepared(values)
        if values["inspect"] and values["method"] != "anyi2v":
            raise InputError("features can be drawn for the method anyi2v only; switch the pictures of features off")
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
            "status": "\n".join([f"done: {out.name}", *prepared.notes]),
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
        image, form, document = handlers.load_run(self.root, self.folder(values), values["former"])
        editor = gr.HTML(scene=handlers.scene(image, values["token"]), incoming=content(document=document))
        return {"editor": editor, "status": f"loaded {values['former']}", **form}
