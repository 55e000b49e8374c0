"""Availability of OpenCV, which only some metrics need."""

from importlib.util import find_spec

from anyi2v.errors import InputError


def check_opencv() -> None:
    """Raise InputError naming the extra unless OpenCV is installed; called before any work."""
    if find_spec("cv2") is None:
        raise InputError("tracking points needs OpenCV: pip install 'anyi2v[eval]'")
