"""Distribution of work over processes, GPUs and machines by ray (extra "cluster"), or in this process without ray.

Each worker is a ray actor with its own GPU or processors. A worker that dies is restarted with its item; an item that
raises an exception is not retried.
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
"""Number of worker deaths after which an item is given up."""

STORE = 80 * 2**20
"""Size of ray's shared memory in bytes, near its minimum; only descriptions of work pass through it."""

PATIENCE = 10.0
"""Timeout in seconds for an address to answer."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # the same as a job in this process
}
"""Environment variables set before ray is imported, unless the user has set them."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Further variables for a cluster of one machine, whose ports listen on the loopback interface only."""


@dataclass(frozen=True)
class Workers:
    """Number, location and resources of parallel worker processes."""

    count: int | None = None
    """Number of workers; None: as many as the resources allow."""
    address: str | None = None
    """Address of a running ray cluster, "auto" for the one on this machine; None: start one on this machine."""
    gpus: int = 0
    """GPUs per worker; a worker sees only its own."""
    threads: int = 1
    """Threads per worker: processors reserved in ray, and threads of PyTorch."""


@dataclass(frozen=True)
class Death:
    """Placeholder for the result of an item whose worker died `DEATHS` times."""

    message: str


class _Worker(Generic[T, R]):
    """The ray actor."""

    def __init__(self, make: Callable[[], Callable[[T], R]], threads: int):
        self.make, self.threads = make, threads
        self.work: Callable[[T], R] | None = None

    def run(self, item: T) -> R:
        """Return the result for an item."""
        if self.work is None:  # not in __init__, where ray would hide the exception
            import torch

            torch.set_num_threads(self.threads)
            self.work = self.make()
        return self.work(item)


def spread(
    make: Callable[[], Callable[[T], R]], items: Sequence[T], workers: Workers | None
) -> Iterator[tuple[T, R | Death]]:
    """Process items in parallel and yield pairs of item and result as they finish.

    Args:
        make: called once in each worker; returns the function from item to result. Items and results are pickled.
        items: the items to process.
        workers: number and location of workers; None: this process, without ray.

    Raises:
        InputError: ray is not installed, there is no cluster at the address, or the resources do not suffice.
        Exception: any exception of `make` or its function; no further items are started.
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
    """Import ray after setting its environment variables."""
    for name, value in (ENVIRONMENT | (ALONE if alone else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(f"several workers need ray: pip install 'anyi2v[cluster]' ({error})") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Start a cluster on this machine, or join the one at the address."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        ray.init("local", include_dashboard=False, object_store_memory=STORE, **options)
        return
    try:
        host, colon, port = address.rpartition(":")
        if colon and "/" not in address:  # ray itself would retry for minutes
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        ray.init(address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"there is no ray cluster at --address {address}: {_line(error)}") from error


def _count(resources: dict[str, float], workers: Workers) -> int:
    """Return the number of workers; raises InputError if the resources do not suffice."""
    rooms = [int(resources.get("CPU", 0)) // workers.threads]
    if workers.gpus:
        rooms.append(int(resources.get("GPU", 0)) // workers.gpus)
    most, each = min(rooms), f"{workers.threads} threads" + f" and {workers.gpus} GPU" * bool(workers.gpus)
    if most == 0 or (workers.count or 0) > most:
        wanted = "a worker" if workers.count is None else f"--workers {workers.count}"
        raise InputError(f"not enough resources for {wanted}: at most {most} with {each} each")
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
