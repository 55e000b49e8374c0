"""Memory still available to a process under the limits of the machine, its control groups and ulimit."""

from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")


def free_memory(root: Path = ROOT) -> int:
    """Return the bytes of CPU memory that this process can still allocate, the minimum over all limits.

    File cache that the kernel can reclaim counts as free.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    return max(0, min([psutil.virtual_memory().available, *_groups(root), *_address_space()]))


def _groups(root: Path) -> Iterator[int]:
    """Yield the free memory of each control group (v1 and v2) that contains this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _levels(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _levels(root / "sys/fs/cgroup/memory", path, *names)


def _levels(mount: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Yield the free memory of a group and its ancestors.

    In a container the path may refer to the host, while the mount is the group itself.
    """
    group = mount / path.strip("/")
    for level in (group, *group.parents):
        try:
            most, used = (level / limit).read_text().strip(), int((level / usage).read_text())
            stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
        except OSError:
            most, used, stat = "max", 0, {}
        if most != "max":
            yield int(most) - used + int(stat.get(cached, 0))
        if level == mount:
            return


def _address_space() -> Iterator[int]:
    """Yield the address space that `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft - psutil.Process().memory_info().vms
