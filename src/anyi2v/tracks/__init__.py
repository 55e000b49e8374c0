"""Tracks, the positions of objects over time, read from and written to files in many formats.

`model` defines the data, `read` lists the formats; docs/tracks.md is the user documentation. Does not import torch.
"""

from anyi2v.tracks.anyi2v_json import ANYI2V_SIZE, save_anyi2v, to_anyi2v
from anyi2v.tracks.model import Box, Point, Track, Tracks, centre
from anyi2v.tracks.own import save_tracks
from anyi2v.tracks.read import FORMATS, load_tracks, read_tracks, tracks_from_dict

__all__ = [
    "ANYI2V_SIZE",
    "FORMATS",
    "Box",
    "Point",
    "Track",
    "Tracks",
    "centre",
    "load_tracks",
    "read_tracks",
    "save_anyi2v",
    "save_tracks",
    "to_anyi2v",
    "tracks_from_dict",
]
