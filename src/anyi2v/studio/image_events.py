"""Events that change the condition image and the tracks, as updates of components by name."""

from pathlib import Path

import gradio as gr

from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource
from anyi2v.studio import handlers
from anyi2v.studio.document import checked, framed, imported
from anyi2v.studio.events import Changes, Events, Values, content, incoming
from anyi2v.studio.examples import EXAMPLES
from anyi2v.studio.fields import parsed_all
from anyi2v.studio.page import SOURCE
from anyi2v.studio.proposals import mask_entry, proposal
from anyi2v.studio.workspace import new_token, run_names, session_folder
from anyi2v.tracks.masks import read_mask


class ImageEvents(Events):
    """Acts on a session's image and tracks."""

    def restore(self, values: Values) -> Changes:
        """Restore the state of a reloaded tab, or start a new session."""
        token, found = handlers.restored(self.root, values["saved"], new_token())
        session_folder(self.root, token).mkdir(parents=True, exist_ok=True)
        image, names = found["image"], run_names(self.root)
        scene = {"token": token} if image is None else handlers.scene(image, token)
        drawn = {"document": found["document"]} if image is not None and "document" in found else {}
        form = {name: value for name, value in found["form"].items() if name in self.form}
        return {
            "token": token,
            "editor": gr.HTML(scene=scene, incoming={"id": token, **drawn}),
            **form,
            "former": gr.Dropdown(names),
            "other": gr.Dropdown(names),
            "status": "" if image is None else "the work of this tab is there again",
        }

    def image(self, values: Values) -> Changes:
        """Create the condition image from files."""
        folder = self.folder(values)
        if values["image"]:
            (folder / handlers.EXAMPLE).unlink(missing_ok=True)  # no longer the image of this session
        image = Path(values["image"]) if values["image"] else handlers.example_of(folder)
        layers = ()
        if values["layer"]:
            if not values["layer_mask"]:
                raise InputError("the layer has no mask; upload one, white where the layer is seen")
            layers = (f"{values['layer']}:{values['layer_mask']}",)
        settings = parsed_all(ConditionSource, values, SOURCE)
        source = ConditionSource(image=image, layer=layers, **settings)
        shown, words = handlers.use_image(self.engine, folder, source)
        return {"editor": gr.HTML(scene=handlers.scene(shown, values["token"])), "status": words}

    def example(self, values: Values) -> Changes:
        """Load an example's image, prompt and tracks."""
        if values["example"] not in EXAMPLES:  # the first entry is the list's title
            return {}
        image, prompt, document = handlers.use_example(self.engine, self.folder(values), values["example"])
        editor = gr.HTML(scene=handlers.scene(image, values["token"]), incoming=content(document=document))
        return {"editor": editor, "prompt": prompt, "image": None, "status": "example loaded"}

    def imported(self, values: Values) -> Changes:
        """Load tracks from a file."""
        _, fit = handlers.condition_of(self.folder(values))
        kind, document = imported(Path(values["import"]), fit, int(values["frames"]))
        return {"editor": incoming(document=document), "status": f"imported: {kind}"}

    def mask(self, values: Values) -> Changes:
        """Load a mask from a file for the selected object."""
        image, _ = handlers.condition_of(self.folder(values))
        entry = mask_entry(read_mask(values["mask"]), image.shape[2], image.shape[1])
        return {"editor": incoming(**entry), "status": "mask loaded; it counts inside of the first box"}

    def export(self, values: Values) -> Changes:
        """Write track files."""
        return {"exported": handlers.export(self.folder(values), values["editor"]), "status": "exported"}

    def frames(self, values: Values) -> Changes:
        """Change the number of frames of the tracks."""
        if not values["editor"] or not values["frames"]:
            return {}
        document, _ = checked(values["editor"])
        moved = framed(document, int(values["frames"]))
        return {} if moved is document else {"editor": incoming(document=moved)}

    def pick(self, values: Values, at: tuple[float, float]) -> Changes:
        """Propose the object at a point of the image, in pixels."""
        image, _ = handlers.condition_of(self.folder(values))
        labels = self.engine.segments(image, values["prompt"], int(values["clusters"]))
        found = proposal(labels, *at)
        return {"editor": incoming(object=found, words="proposed: box, mask and point"), "status": ""}
