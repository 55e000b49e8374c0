"""Layout of the page and its components. Their behaviour is in `wiring`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from anyi2v.backbone.config import BackboneConfig
from anyi2v.comparators.settings import SETTINGS, MethodName
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig, SamplerName
from anyi2v.method.recipes import RECIPES, recipe
from anyi2v.studio.examples import EXAMPLES
from anyi2v.studio.fields import Setting, settings_of, shown
from anyi2v.studio.form import METHOD, offered, usual_form

HERE = Path(__file__).parent
SOURCE = "source."
"""Prefix of the condition image's settings in the form."""
SCRIPTS = ("keyframes.js", "mask.js", "drawing.js", "editor.js")
"""Scripts of the editor, concatenated in this order into one function body."""
UPLOADS = ("image", "layer")
"""Settings of the condition image without a form field: files."""
BAR = """
progress { display: block; width: 100%; height: 8px; appearance: none; border: 0; overflow: hidden; }
progress::-webkit-progress-bar { background: var(--border-color-primary); }
progress::-webkit-progress-value { background: var(--color-accent); }
progress::-moz-progress-bar { background: var(--color-accent); }
"""
HEIGHT = 260
"""Height of a run's results, in pixels."""
Parts = dict[str, Any]
"""Components by name; those of settings are named as in the form."""


def build(config: BackboneConfig) -> tuple[Any, Parts]:
    """Build the page for a backbone without event handlers; return its blocks and its components."""
    with gr.Blocks(title="anyi2v studio", analytics_enabled=False, fill_width=True) as blocks:
        parts: Parts = {"token": gr.State(""), "saved": gr.Textbox(visible=False)}
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=6, min_width=320):
                parts |= _image()
                parts["editor"] = _editor(config)
                parts |= _exchange()
            with gr.Column(scale=5, min_width=320):
                parts |= _run()
                parts |= _results()
                parts |= _settings(config)
    return blocks, parts


def _editor(config: BackboneConfig) -> Any:
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return gr.HTML(
        "",
        html_template=(HERE / "editor.html").read_text(encoding="utf-8"),
        css_template=(HERE / "editor.css").read_text(encoding="utf-8"),
        js_on_load="\n".join(scripts),
        apply_default_css=False,
        elem_id="editor",
        label="Tracks",
        scene=None,
        incoming=None,
        frames=config.frames,
    )


def _image() -> Parts:
    parts: Parts = {}
    with gr.Row(elem_id="source"):
        choices = ["Examples", *EXAMPLES]
        about = {"label": "Example", "show_label": False, "container": False, "min_width": 130}
        parts["example"] = gr.Dropdown(choices, value=choices[0], **about)
        parts["image"] = gr.UploadButton("Upload image or mesh", size="md", elem_id="upload", min_width=130)
    with gr.Accordion("Condition image: fit, edges, mesh, layers", open=False):
        with gr.Row():
            for setting in settings_of(ConditionSource):
                if setting.name not in UPLOADS:
                    name = SOURCE + setting.name
                    parts[name] = field(setting, getattr(ConditionSource(), setting.name), name)
        with gr.Row():
            parts["layer"] = gr.File(label="Layer over it (image or mesh)", height=90, elem_id="layer")
            parts["layer_mask"] = gr.File(label="Where the layer is seen (mask)", height=90, elem_id="layer-mask")
        parts["apply"] = gr.Button("Make the condition image again", size="sm")
    return parts


def field(setting: Setting, value: Any, name: str) -> Any:
    """Create the component of a setting with this name in the form."""
    about: dict[str, Any] = {"label": setting.label, "info": setting.text, "min_width": 200}
    about |= {"elem_id": "setting-" + name.removeprefix(METHOD).replace(".", "-"), "elem_classes": "setting"}
    value = shown(setting, value)
    match setting.kind:
        case "whole" | "number" if setting.optional:
            return gr.Textbox(value, **about)
        case "truth":
            return gr.Checkbox(value, **about)
        case "whole":
            return gr.Number(value, precision=0, **about)
        case "number":
            return gr.Number(value, step=0.001, **about)
        case "choice":
            return gr.Dropdown([*([""] if setting.optional else []), *setting.choices], value=value, **about)
        case _:
            return gr.Textbox(value, **about)


def _exchange() -> Parts:
    parts: Parts = {}
    with gr.Accordion("Import, export, masks from files", open=False, elem_id="exchange"):
        with gr.Row():
            parts["import"] = gr.UploadButton("Import tracks (any format)", size="sm", min_width=120, elem_id="import")
            parts["mask"] = gr.UploadButton("Mask of the selected object", size="sm", min_width=120, elem_id="mask")
            parts["export"] = gr.Button("Export track files", size="sm", min_width=120, elem_id="export")
        with gr.Row():
            parts["exported"] = gr.File(label="Tracks in our format and in AnyI2V's", interactive=False, height=90)
            about = {"label": "Segments that Pick tells apart", "minimum": 2, "maximum": 32, "min_width": 120}
            parts["clusters"] = gr.Number(4, precision=0, **about)
    return parts


def _run() -> Parts:
    parts: Parts = {}
    with gr.Group():
        parts["prompt"] = gr.Textbox(label="Prompt", placeholder="What the video shows", lines=1, elem_id="prompt")
        with gr.Row():
            parts["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, scale=3, min_width=140)
            parts["seed"] = gr.Number(0, label="Seed", precision=0, min_width=80)
    with gr.Row():
        parts["run"] = gr.Button("Run", variant="primary", elem_id="run", min_width=90, size="md")
        parts["cancel"] = gr.Button("Cancel", elem_id="cancel", min_width=80, size="md")
        parts["estimate"] = gr.Button("Estimate", elem_id="estimate", min_width=90, size="md")
    parts["status"] = gr.Textbox(label="Status", lines=2, max_lines=6, interactive=False, elem_id="status")
    parts["progress"] = gr.HTML(
        {"share": 0},
        html_template='<progress max="1" value="{{value.share}}" aria-label="Progress of the stage"></progress>',
        css_template=BAR,
        js_on_load=None,
        apply_default_css=False,
        elem_id="progress",
    )
    return parts


def _settings(config: BackboneConfig) -> Parts:
    usual, parts = usual_form(config), Parts()
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        parts["inspect"] = gr.Checkbox(False, label="Also draw features, similarities and masks (takes more memory)")
        with gr.Row():
            about = {"label": "recipe", "info": "Fills in the settings of AnyI2V.", "min_width": 200}
            parts["recipe"] = gr.Dropdown(list(RECIPES), value="paper", **about)
            text = "How the latents move from one noise level to the next."
            sampler = Setting("sampler", "choice", SamplerName, text, get_args(SamplerName))
            text = "What steers the video: AnyI2V, or another method on the same hooks."
            method = Setting("method", "choice", MethodName, text, get_args(MethodName))
            whole = (
                Setting("frames", "whole", int, "Of the video."),
                Setting("fps", "whole", int, "Frames per second."),
            )
            for setting in (sampler, *whole, method):
                parts[setting.name] = field(setting, usual[setting.name], setting.name)
        for name, kind in SETTINGS.items():
            with gr.Group(visible=False) as parts[f"{name} settings"], gr.Row():
                for setting in offered(kind):
                    key = f"{name}.{setting.name}"
                    parts[key] = field(setting, getattr(kind(), setting.name), key)
        with gr.Row():
            settings = recipe("paper", config.method)
            for setting in settings_of(MethodConfig):
                key = METHOD + setting.name
                parts[key] = field(setting, getattr(settings, setting.name), key)
    return parts


def _results() -> Parts:
    parts: Parts = {}
    film: dict[str, Any] = {"autoplay": True, "loop": True, "height": HEIGHT, "buttons": ["download"], "min_width": 140}
    sheet: dict[str, Any] = {"preview": True, "height": HEIGHT, "object_fit": "contain"}
    with gr.Tabs(elem_id="results") as parts["tabs"]:
        with gr.Tab("Preview", id="preview"):
            parts["preview"] = gr.Image(
                label="Latents of all frames", interactive=False, height=HEIGHT, buttons=[], elem_id="preview"
            )
        with gr.Tab("Video", id="video"), gr.Row():
            parts["video"] = gr.Video(label="Video", elem_id="video", **film)
            parts["beside"] = gr.Video(label="Side by side", **film)
        with gr.Tab("Pictures", id="pictures"):
            parts["pictures"] = gr.Gallery(label="Pictures of the run", elem_id="pictures", **sheet)
        with gr.Tab("Command", id="command"):
            about = {"language": "shell", "lines": 3, "wrap_lines": True, "elem_id": "command", "interactive": False}
            parts["command"] = gr.Code(
                label="Makes the same bytes, in the folder where the studio was started", **about
            )
            parts["files"] = gr.File(label="Files of the job and its run", interactive=False)
        with gr.Tab("Runs", id="history"):
            parts |= _history()
    return parts


def _history() -> Parts:
    parts: Parts = {}
    film: dict[str, Any] = {"autoplay": True, "loop": True, "height": 200, "buttons": [], "min_width": 140}
    with gr.Row():
        parts["former"] = gr.Dropdown([], label="Run", min_width=150, elem_id="former")
        parts["other"] = gr.Dropdown([], label="Compare with", min_width=150, elem_id="other")
    parts["load"] = gr.Button("Load image, tracks and settings of the run", size="sm")
    with gr.Row():
        parts["video_a"] = gr.Video(label="Run", elem_id="video_a", **film)
        parts["video_b"] = gr.Video(label="Compared with", elem_id="video_b", **film)
    parts["differences"] = gr.Textbox(label="What is different", lines=2, max_lines=8, interactive=False)
    return parts


def of_settings(parts: Mapping[str, Any], prefix: str = METHOD) -> Parts:
    """Return the components of settings whose names start with `prefix`."""
    return {name: part for name, part in parts.items() if name.startswith(prefix)}
