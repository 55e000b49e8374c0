"""Names of the kinds of benchmark cases, defined in `cases` and `input_cases`; does not import torch."""

from typing import Literal, get_args

SceneKind = Literal["plain", "two objects", "pan", "unseen pair", "unseen shape"]
"""Kinds that vary the scene."""
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
"""Kinds that vary the user's input."""
Kind = Literal[SceneKind, InputKind]
KINDS: tuple[Kind, ...] = get_args(Kind)
CAMERA_KINDS: tuple[Kind, ...] = ("pan", "zoom")
"""Kinds whose tracks are those of the camera instead of the objects."""
