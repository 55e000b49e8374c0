"""One valid file of every track format, written as its project writes it."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anyi2v.tracks import Tracks, tracks_from_dict

SIZE = (640, 480)
"""Of the image that all are drawn on."""

TRAILBLAZER = """\
keyframe:
- bbox_ratios: [0.0, 0.0, 0.1, 0.1]
  frame: 0
  prompt: A tiger walking alone down the street
- bbox_ratios:
  - 0.5
  - 0.5
  - 1.0
  - 1.0
  frame: 24
  prompt: A tiger walking alone down the street
seed: 123451232531
token_inds:
- 2
width: 576
height: 320
num_inference_steps:
trailblazer:
  trailing_length: 13
"""
FREETRAJ = "0,0.1,0.4,0.1,0.4\n6,0.6,0.9,0.1,0.4\n15,0.6,0.9,0.6,0.9\n"


def npy(array: Any, dtype: type = np.float64) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(array, dtype=dtype))
    return out.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def cotracker() -> bytes:
    tracks = np.linspace(40, 300, 2 * 6 * 3).reshape(1, 6, 3, 2).astype(np.float32)
    seen = np.ones((1, 6, 3), dtype=bool)
    seen[0, 2:4, 1] = False
    return npz(pred_tracks=tracks, pred_visibility=seen)


def tapnet(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """3 points of 24 frames: the first goes from x = 50 to x = 280."""
    frames = np.arange(24)
    tracks = np.stack([np.stack([50 + 10.0 * frames, np.full(24, 40.0 + 30 * p)], -1) for p in range(3)])
    return {"tracks": tracks, "visibles": np.ones((3, 24), dtype=bool), **changes}


def tap_vid() -> bytes:
    """The same points in fractions of the frame."""
    points = tapnet()["tracks"] / np.array(SIZE)
    return npz(points=points.astype(np.float32), occluded=np.zeros((3, 24), dtype=bool), video=np.zeros((24, 4, 4, 3)))


SG_I2V = [[[100, 120], [200, 300], *[[150 + 10 * k, 210 + 5 * k] for k in range(14)]]]
ANYI2V = {
    "bounding_box": [[40, 60, 136, 148]],
    "target_box": [[40, 60, 152, 156]],
    "center_traj": [[[88.0 + 9 * k, 104.0 + 2 * k] for k in range(16)]],
    "query_point": [[[60, 80], [120, 130]]],
}
DRAG_ANYTHING = {
    "1": {"comment": "ahead", "mask_name": "car.png", "trajectory": [[270 + 5 * k, 300 - 4 * k] for k in range(16)]},
    "2": {"comment": "fix", "mask_name": "wall.png", "trajectory": [[108, 216]] * 16},
}
OWN = {
    "width": 640,
    "height": 480,
    "objects": [
        {"name": "boxes", "boxes": [[0, 0, 50, 50], [100, 100, 160, 150]], "points": [[10, 10]]},
        {
            "name": "keys",
            "keyframes": [{"frame": 1, "box": [50, 100, 200, 300]}, {"frame": 8, "box": [200, 150, 350, 330]}],
            "interpolation": "smooth",
        },
        {"name": "path", "path": [[300, 300], [320, 310], [400, 200]], "size": [60, 40]},
        {"name": "timed", "path": [[300, 300], [320, 310], [400, 200]], "speed": "constant", "ease": "in-out"},
        {"name": "anchor", "box": [10, 10, 50, 50], "weight": 2.5},
        {"name": "from box", "path": [[300, 300], [320, 310]], "box": [250, 250, 310, 330]},
        {"name": "point", "point": [500, 400]},
        {"name": "mask", "mask": "car.png", "path": [[1, 1], [50, 60]]},
        {"name": "runs", "mask": {"size": [2, 2], "counts": [1, 1, 2]}},
    ],
    "camera": {"pan": [40, 0], "zoom": 1.2, "strength": 0.5},
}

MOT = "".join(f"{k},{i},{100 * i + 10 * k},50,80,120,1,-1,-1,-1\n" for i in (1, 2) for k in range(1, 9) if i + k != 6)
SPLINE = [[{"x": 100 + 8 * i, "y": 200} for i in range(16)], [{"x": 300, "y": 100 + 5 * i} for i in range(16)]]
LABELME = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [
        {"label": "car", "points": [[200, 240], [330, 360]], "group_id": None, "shape_type": "rectangle", "flags": {}},
        {"label": "car", "points": [[10, 10], [30, 20], [90, 30]], "group_id": None, "shape_type": "linestrip"},
        {"label": "wall", "points": [[40, 160], [200, 160], [120, 300]], "group_id": 1, "shape_type": "polygon"},
        {"label": "sun", "points": [[500, 80], [520, 80]], "group_id": None, "shape_type": "circle"},
        {"label": "sun", "points": [[400, 100]], "group_id": None, "shape_type": "point"},
        {"label": "bird", "points": [[500, 60], [420, 80]], "group_id": None, "shape_type": "line"},
    ],
    "imagePath": "image.png",
    "imageData": None,
    "imageHeight": SIZE[1],
    "imageWidth": SIZE[0],
}
COCO = {
    "images": [{"id": 7, "width": SIZE[0], "height": SIZE[1], "file_name": "image.png"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 3,
            "bbox": [200, 240, 130, 120],
            "segmentation": [[200, 240, 330, 360]],
        },
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [40.5, 160, 160, 140], "iscrowd": 0},
    ],
    "categories": [{"id": 3, "name": "car"}],
}

FILES: dict[str, bytes] = {
    "anyi2v track file": json.dumps(OWN).encode(),
    "JSON of the published AnyI2V code": json.dumps(ANYI2V).encode(),
    "SG-I2V .npy": npy(SG_I2V),
    "CoTracker .npy": npy(np.linspace(40, 300, 2 * 6 * 3).reshape(1, 6, 3, 2), np.float32),
    "CoTracker .npz": cotracker(),
    "tapnet .npz": npz(**tapnet()),
    "TAP-Vid .npz": tap_vid(),
    "FreeTraj .txt": FREETRAJ.encode(),
    "MOT .txt": MOT.encode(),
    "x,y .txt": b"100,100\n150,120.5\n200,90\n\n50,60\n",
    "TrailBlazer YAML": TRAILBLAZER.encode(),
    "LabelMe JSON": json.dumps(LABELME).encode(),
    "COCO JSON": json.dumps(COCO).encode(),
    "DragAnything demo.json": json.dumps(DRAG_ANYTHING).encode(),
    "DragAnything trajectory JSON": json.dumps({"7": [[10, 20], [15, 30]], "12": [[300, 200]]}).encode(),
    "spline editor JSON": json.dumps(SPLINE).encode(),
    "ImageConductor JSON": json.dumps([[[100, 100], [150, 120], [200, 90]], [[50, 60]]]).encode(),
}
"""By title."""


def write_masks(folder: Path) -> None:
    """car.png and wall.png, as the files name them."""
    for name, (x0, y0, x1, y1) in {"car": (200, 240, 330, 360), "wall": (40, 160, 200, 300)}.items():
        mask = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
        mask[y0:y1, x0:x1] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")


def ours(*objects: dict[str, Any], width: int = 100, height: int = 100, **top: Any) -> Tracks:
    """Tracks from our JSON's objects, which get names."""
    named = [{"name": f"o{i}", **item} for i, item in enumerate(objects, 1)]
    return tracks_from_dict({"width": width, "height": height, "objects": named, **top})
