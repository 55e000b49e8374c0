"""Inversion of several condition images of a batch together, ahead of their jobs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.batch.check import Task
from anyi2v.batch.work import read_inputs
from anyi2v.errors import AnyI2VError
from anyi2v.method.features import injects
from anyi2v.pipeline import invert_images


class Ahead:
    """Inverts the image of a task in one batch with those of following tasks.

    A sweep over seeds or tracks inverts its image once. The features equal those of separate jobs up to rounding, and
    the record of a run states that they were given.

    Args:
        tasks: tasks in the order in which they are run.
        together: maximum number of images in a batch; never more than the video has frames, so that the batch needs no
            more memory than a guided step.
    """

    def __init__(self, tasks: Sequence[Task], together: int):
        self.tasks, self.together = tasks, together
        self.known: dict[tuple[Any, ...], dict[str, Tensor]] = {}

    def features(self, task: Task, backbone: Backbone, *, low_memory: bool) -> Mapping[str, Tensor] | None:
        """Return the features of a task's condition image; None if its job must compute them itself, or needs none.

        Raises what `anyi2v.invert_images` does.
        """
        method = task.job.request.method
        if task.job.request.comparator is not None or method.inversion == "noise" or not injects(method):
            return None
        key = (*_settings(task), *_image(task), low_memory)
        if key not in self.known:
            self.known = {}  # released before the next ones are computed
            batch = self._batch(task)
            prompts = [found.job.request.prompt for found in batch]
            images = [read_inputs(found.job.request).image for found in batch]
            fps = task.wanted["fps"]
            inverted = invert_images(backbone, images, prompts, config=method, fps=fps, low_memory=low_memory)
            keys = [(*_settings(found), *_image(found), low_memory) for found in batch]
            self.known = dict(zip(keys, inverted, strict=True))
        return self.known[key]

    def _batch(self, first: Task) -> list[Task]:
        """Return `first` and following unfinished tasks with different images."""
        found = {_image(first): first}
        for task in self.tasks[self.tasks.index(first) + 1 :]:
            if len(found) >= min(self.together, first.wanted["frames"]):
                break
            if _image(task) not in found and _settings(task) == _settings(first) and _usable(task):
                found[_image(task)] = task
        return list(found.values())


def _usable(task: Task) -> bool:
    """Return whether a task is unfinished, and its files can still be read."""
    try:
        if not task.done:
            read_inputs(task.job.request)
            return True
    except AnyI2VError:  # reported by its own job
        pass
    return False


def _image(task: Task) -> tuple[str, str]:
    return task.wanted["checksums"]["condition"], task.job.request.prompt


def _settings(task: Task) -> tuple[Any, ...]:
    """Return the settings that tasks must share to be inverted together."""
    request, wanted = task.job.request, task.wanted
    method = request.method
    return (
        *(request.backbone, request.operators, request.embeddings),
        *(wanted["width"], wanted["height"], wanted["fps"]),
        *(method.inversion, method.inversion_timestep, method.inversion_stride),
        *(method.inject_hidden, method.inject_query),
    )
