"""How much memory a process can still have: of the machine, of its control groups, and of its own limit."""

from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")


def free_memory(root: Path = ROOT) -> int:
    """Bytes of the CPU's memory that this process can still have, on any system: the least of all that limits it.

    Memory that the kernel can take back at once counts as free: files that it keeps for speed alone.

    Args:
        root: where `proc` and `sys` lie.
    """
    return max(0, min([psutil.virtual_memory().available, *_groups(root), *_address_space()]))


def _groups(root: Path) -> Iterator[int]:
    """What is free in each control group that this process is in, versions 1 and 2, up to the outermost."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _levels(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _levels(root / "sys/fs/cgroup/memory", path, *names)


def _levels(mount: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """A group and those around it; in a container the path may be one of the host, and the mount the group itself."""
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
    """What `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft - psutil.Process().memory_info().vms
