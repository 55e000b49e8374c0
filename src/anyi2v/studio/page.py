"""The page: which components there are, and where. `wiring` says what they do."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anyi2v.backbone.config import BackboneConfig
from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig, SamplerName
from anyi2v.method.recipes import RECIPES
from anyi2v.studio.examples import EXAMPLES
from anyi2v.studio.fields import Setting, settings_of, shown
from anyi2v.studio.form import METHOD, usual_form

HERE = Path(__file__).parent
SOURCE = "source."
"""Before the names of the settings of the condition image."""
UPLOADS = ("width", "height", "image", "layer")
"""Settings of the condition image that are no fields: files, and the size, which is the backbone's."""
Parts = dict[str, Any]
"""Components by name; those of settings as in the form."""


def check_gradio() -> None:
    """Raises InputError naming the extra unless gradio is installed."""
    if find_spec("gradio") is None:
        raise InputError("the studio needs gradio: pip install 'anyi2v[studio]'")


def build(config: BackboneConfig) -> tuple[Any, Parts]:
    """The page for a backbone, without anything happening yet: its blocks, and its components."""
    import gradio as gr

    with gr.Blocks(title="anyi2v studio", analytics_enabled=False, fill_width=True) as blocks:
        parts: Parts = {"token": gr.State(""), "saved": gr.Textbox(visible=False)}
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=6, min_width=340):
                parts |= _image(gr)
                parts["editor"] = _editor(gr, config)
                parts |= _exchange(gr)
            with gr.Column(scale=5, min_width=340):
                parts |= _run(gr)
                parts |= _settings(gr, config)
                parts |= _results(gr)
    return blocks, parts


def _editor(gr: Any, config: BackboneConfig) -> Any:
    scripts = [
        (HERE / name).read_text(encoding="utf-8") for name in ("keyframes.js", "mask.js", "drawing.js", "editor.js")
    ]
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


def _image(gr: Any) -> Parts:
    parts: Parts = {}
    with gr.Row():
        parts["example"] = gr.Dropdown(list(EXAMPLES), value=None, label="Example", scale=2, min_width=140)
        parts["image"] = gr.UploadButton("Upload an image or mesh", scale=2, min_width=140, size="md", elem_id="upload")
    with gr.Accordion("Condition image: fit, edges, mesh, layers", open=False):
        with gr.Row():
            for setting in settings_of(ConditionSource):
                if setting.name not in UPLOADS:
                    value = getattr(ConditionSource(), setting.name)
                    parts[SOURCE + setting.name] = field(gr, setting, value)
        with gr.Row():
            parts["layer"] = gr.File(label="Layer over it (image or mesh)", height=90)
            parts["layer_mask"] = gr.File(label="Where the layer is seen (mask)", height=90)
        parts["apply"] = gr.Button("Make the condition image again", size="sm")
    return parts


def field(gr: Any, setting: Setting, value: Any) -> Any:
    """The component of a setting."""
    about = {"label": setting.label, "info": setting.text, "min_width": 200}
    value = shown(setting, value)
    match setting.kind:
        case "truth":
            return gr.Checkbox(value, **about)
        case "whole":
            return gr.Number(value, precision=0, **about)
        case "number":
            return gr.Number(value, step=0.001, **about)
        case "choice":
            return gr.Dropdown([*([""] if setting.optional else []), *setting.choices], value=value, **about)
        case "text":
            return gr.Textbox(value, **about)


def _exchange(gr: Any) -> Parts:
    parts: Parts = {}
    with gr.Accordion("Import, export, masks from files", open=False), gr.Row():
        parts["import"] = gr.UploadButton("Import tracks (any format)", size="sm", min_width=120)
        parts["mask"] = gr.UploadButton("Mask of the selected object", size="sm", min_width=120)
        parts["export"] = gr.Button("Export track files", size="sm", min_width=120)
        parts["exported"] = gr.File(label="Ours, and AnyI2V's", interactive=False, height=90)
        parts["clusters"] = gr.Number(
            4, label="Segments that Pick tells apart", precision=0, minimum=2, maximum=32, min_width=120
        )
    return parts


def _run(gr: Any) -> Parts:
    parts: Parts = {}
    parts["prompt"] = gr.Textbox(label="Prompt", placeholder="What the video shows", lines=1, elem_id="prompt")
    with gr.Row():
        parts["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, scale=3, min_width=140)
        parts["seed"] = gr.Number(0, label="Seed", precision=0, min_width=70)
    with gr.Row():
        parts["run"] = gr.Button("Run", variant="primary", elem_id="run", min_width=100)
        parts["cancel"] = gr.Button("Cancel", elem_id="cancel", min_width=80)
        parts["estimate"] = gr.Button("Memory and time", min_width=110)
    parts["inspect"] = gr.Checkbox(False, label="Also draw features, similarities and masks (takes more memory)")
    parts["status"] = gr.Textbox(label="Status", lines=1, max_lines=6, interactive=False, elem_id="status")
    parts["progress"] = gr.HTML(
        {"stage": "", "share": 0},
        html_template='<progress max="1" value="{{value.share}}" aria-label="Progress of the stage"></progress>',
        css_template="progress { width: 100%; height: 10px; accent-color: var(--color-accent); }",
        js_on_load=None,
        apply_default_css=False,
        elem_id="progress",
        visible=False,
    )
    return parts


def _settings(gr: Any, config: BackboneConfig) -> Parts:
    usual, parts = usual_form(config), {}
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            parts["recipe"] = gr.Dropdown(
                list(RECIPES), value="paper", label="Recipe", info="Fills in all settings below."
            )
            setting = Setting(
                "sampler", "choice", SamplerName, "How noise levels follow each other.", ("ddim", "dpm-solver-2m")
            )
            parts["sampler"] = field(gr, setting, "ddim")
            parts["frames"] = gr.Number(usual["frames"], label="frames", precision=0, minimum=1, info="Of the video.")
            parts["fps"] = gr.Number(usual["fps"], label="fps", precision=0, minimum=1, info="Frames per second.")
        with gr.Row():
            for setting in settings_of(MethodConfig):
                parts[METHOD + setting.name] = field(
                    gr, setting, MethodConfig.from_dict(config.method).__getattribute__(setting.name)
                )
    return parts


def _results(gr: Any) -> Parts:
    parts: Parts = {}
    with gr.Tabs(elem_id="results") as parts["tabs"]:
        with gr.Tab("Preview", id="preview"):
            parts["preview"] = gr.Image(label="Latents of all frames", interactive=False, height=300, buttons=[])
        with gr.Tab("Video", id="video"):
            parts["video"] = gr.Video(
                label="Video", autoplay=True, loop=True, height=300, elem_id="video", buttons=["download"]
            )
        with gr.Tab("Side by side", id="beside"):
            parts["beside"] = gr.Video(
                label="Condition, tracks and video", autoplay=True, loop=True, height=300, buttons=["download"]
            )
        with gr.Tab("Masks and loss", id="pictures"):
            parts["pictures"] = gr.Gallery(label="Pictures", columns=2, height=300, object_fit="contain")
        with gr.Tab("Features", id="features"):
            parts["features"] = gr.Gallery(
                label="Features of the last inspected run", columns=2, height=300, object_fit="contain"
            )
        with gr.Tab("Command", id="command"):
            parts["command"] = gr.Code(
                label="Makes the same bytes", language="shell", lines=4, wrap_lines=True, elem_id="command"
            )
            parts["files"] = gr.File(label="Files of the job and its run", interactive=False)
        with gr.Tab("History", id="history"):
            parts |= _history(gr)
    return parts


def _history(gr: Any) -> Parts:
    parts: Parts = {}
    with gr.Row():
        parts["former"] = gr.Dropdown([], label="Run", scale=2, min_width=150, elem_id="former")
        parts["other"] = gr.Dropdown([], label="Compare with", scale=2, min_width=150, elem_id="other")
        parts["load"] = gr.Button("Load these settings", size="sm", min_width=120)
    with gr.Row():
        parts["video_a"] = gr.Video(label="Run", autoplay=True, loop=True, height=220, buttons=[], min_width=140)
        parts["video_b"] = gr.Video(
            label="Compared with", autoplay=True, loop=True, height=220, buttons=[], min_width=140
        )
    parts["differences"] = gr.Textbox(label="What is different", lines=2, max_lines=8, interactive=False)
    return parts


def of_settings(parts: Mapping[str, Any], prefix: str = METHOD) -> Parts:
    """The components of the settings whose names begin with `prefix`."""
    return {name: part for name, part in parts.items() if name.startswith(prefix)}
