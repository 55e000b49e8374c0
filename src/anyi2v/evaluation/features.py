"""Features of many videos, stored on disk so that memory does not grow with their number."""

import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.errors import InputError, ResourceError

CHUNK = 1024
"""Number of rows in memory at a time."""


class Features:
    """Rows `[n d]` of one extractor, appended video by video to an anonymous temporary file.

    Stored exactly as the extractor returns them, read back in float64.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed with this object)
        self._dtype = np.dtype(np.float32)
        self.width = 0
        """Number of features per row, d."""
        self._rows: list[int] = []

    def append(self, rows: Float[Tensor, "m d"]) -> None:
        """Append the features of one video: one row, or one per frame.

        Raises:
            InputError: features are NaN or infinite, or their number per row differs from earlier videos.
            ResourceError: the disk is full.
        """
        if not rows.isfinite().all():
            raise InputError("the extractor gives NaN or infinite features")
        values = rows.detach().cpu().numpy()
        if not self._rows:
            self.width, self._dtype = values.shape[1], values.dtype
        if values.shape[1] != self.width:
            raise InputError(f"the extractor gives {values.shape[1]} features, but gave {self.width} before")
        try:
            self._file.write(values.astype(self._dtype).tobytes())
            self._file.flush()
        except OSError as error:
            raise ResourceError(f"cannot keep features in {tempfile.gettempdir()}: {error.strerror}") from error
        self._rows.append(len(values))

    def __len__(self) -> int:
        return sum(self._rows)

    @property
    def videos(self) -> int:
        """Number of videos that the rows belong to."""
        return len(self._rows)

    @property
    def owners(self) -> Int[Tensor, " n"]:
        """Index of each row's video, from 0."""
        return torch.arange(self.videos).repeat_interleave(torch.tensor(self._rows, dtype=torch.long))

    def take(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Return the rows with the given indices."""
        held = np.memmap(self._file, self._dtype, "r", shape=(len(self), self.width))
        return torch.from_numpy(held[rows.numpy()].astype(np.float64))

    def chunks(self) -> Iterator[tuple[int, Float[Tensor, "m d"]]]:
        """Yield all rows, at most `CHUNK` at a time, each chunk with the index of its first row."""
        row = self.width * self._dtype.itemsize
        for start in range(0, len(self), CHUNK):
            self._file.seek(start * row)
            read = np.frombuffer(self._file.read(CHUNK * row), self._dtype)
            yield start, torch.from_numpy(read.reshape(-1, self.width).astype(np.float64))
