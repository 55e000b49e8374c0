"""The kinds of benchmark cases by name; `cases` and `input_cases` say what they are. Free of torch."""

from typing import Literal, get_args

SceneKind = Literal["plain", "two objects", "pan", "unseen pair", "unseen shape"]
"""What the scene is like."""
InputKind = Literal[
    "resize",
    "leaving",
    "three objects",
    "user mask",
    "loose mask",
    "loose box",
    "zoom",
    "wide",
    "padded",
    "cropped",
    "mixed",
    "mesh",
    "points",
]
"""What the user brings."""
Kind = Literal[SceneKind, InputKind]
KINDS: tuple[Kind, ...] = get_args(Kind)
CAMERA_KINDS: tuple[Kind, ...] = ("pan", "zoom")
"""Those whose tracks are the camera's instead of the objects'."""
