"""Work spread over processes, GPUs and machines by ray, which the extra "cluster" installs; or done here, without.

Each worker is a ray actor with a GPU or some processors of its own. A worker that dies is started again with the item
that it had; what an item raises is not tried again.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar

from anyi2v.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

DEATHS = 3
"""So many workers may an item cost."""

STORE = 80 * 2**20
"""Bytes of ray's shared memory, near the least that it takes: only descriptions of work pass through it."""

PATIENCE = 10.0
"""Seconds that an address may take to answer."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as a job in this process would have
}
"""How ray is set up before it is imported, unless the user has chosen otherwise."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""For a cluster of one machine: its ports are open on the loopback interface only."""


@dataclass(frozen=True)
class Workers:
    """Processes that work beside each other."""

    count: int | None = None
    """None: as many as there is room for."""
    address: str | None = None
    """Of a running ray cluster, "auto" for that of this machine; None: this machine alone."""
    gpus: int = 0
    """Of each; with one, it sees no other."""
    threads: int = 1
    """Of each: processors that are counted as taken, and threads of PyTorch."""


@dataclass(frozen=True)
class Death:
    """What there is in place of a result if an item's worker died `DEATHS` times."""

    message: str


class _Worker(Generic[T, R]):
    """The actor."""

    def __init__(self, make: Callable[[], Callable[[T], R]], threads: int):
        self.make, self.threads = make, threads
        self.work: Callable[[T], R] | None = None

    def run(self, item: T) -> R:
        """The result for an item."""
        if self.work is None:  # not in __init__, where ray would not say what was raised
            import torch

            torch.set_num_threads(self.threads)
            self.work = self.make()
        return self.work(item)


def spread(
    make: Callable[[], Callable[[T], R]], items: Sequence[T], workers: Workers | None
) -> Iterator[tuple[T, R | Death]]:
    """Pairs of item and result, as they are finished.

    Args:
        make: called once in each worker, for the function from item to result; both items and results are pickled.
        items: what to work on.
        workers: how many, and where; None: this process, without ray.

    Raises:
        InputError: ray is not installed, there is no cluster at the address, or no room for the workers.
        Exception: what `make` or its function raises; no item is begun after that.
    """
    if not items:
        return
    if workers is None:
        work = make()
        yield from ((item, work(item)) for item in items)
        return
    ray = _ray(alone=workers.address is None)
    started = not ray.is_initialized()
    if started:
        _connect(ray, workers.address)
    idle: list[Any] = []
    at_work: dict[Any, tuple[Any, T]] = {}
    try:
        demand = {"num_cpus": workers.threads, "num_gpus": workers.gpus}
        actor = ray.remote(max_restarts=-1, max_task_retries=DEATHS - 1, **demand)(_Worker)
        count = min(_count(ray.cluster_resources(), workers), len(items))
        idle += [actor.remote(make, workers.threads) for _ in range(count)]
        waiting = list(reversed(items))
        while waiting or at_work:
            while idle and waiting:
                worker, item = idle.pop(), waiting.pop()
                at_work[worker.run.remote(item)] = worker, item
            (done, *_), _ = ray.wait(list(at_work))
            worker, item = at_work.pop(done)
            idle.append(worker)
            yield item, _result(ray, done)
    finally:
        for worker in [*idle, *(worker for worker, _ in at_work.values())]:
            ray.kill(worker)
        if started:
            ray.shutdown()


def _ray(*, alone: bool) -> ModuleType:
    """The module, whose environment variables must be there before it is imported."""
    for name, value in (ENVIRONMENT | (ALONE if alone else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(f"several workers need ray: pip install 'anyi2v[cluster]' ({error})") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Starts a cluster of this machine alone, or joins the one at the address."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        ray.init("local", include_dashboard=False, object_store_memory=STORE, **options)
        return
    try:
        host, colon, port = address.rpartition(":")
        if colon and "/" not in address:  # ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"there is no ray cluster at --address {address}: {_line(error)}") from error


def _count(resources: dict[str, float], workers: Workers) -> int:
    """How many workers there will be; raises InputError if there is no room for them."""
    rooms = [int(resources.get("CPU", 0)) // workers.threads]
    if workers.gpus:
        rooms.append(int(resources.get("GPU", 0)) // workers.gpus)
    most, each = min(rooms), f"{workers.threads} threads" + f" and {workers.gpus} GPU" * bool(workers.gpus)
    if most == 0 or (workers.count or 0) > most:
        wanted = "a worker" if workers.count is None else f"--workers {workers.count}"
        raise InputError(f"there is no room for {wanted}: at most {most} of {each} each")
    return workers.count or most


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return Death(f"its worker died {DEATHS} times; the last time: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
