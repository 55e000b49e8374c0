"""Export of runs under VBench's file names (Huang et al. 2024): `PROMPT-INDEX.mp4` in one folder."""

import filecmp
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError
from anyi2v.files import atomic, check_place, expanded, read_json
from anyi2v.reports.folder import RECORD

VIDEO = "video.mp4"
LONGEST_NAME = 255
"""Maximum length of a file name in bytes on most file systems."""


def plan(runs: str | Path, out: str | Path) -> dict[Path, Path]:
    """Map the video of every run in a folder to the file it is copied to.

    Runs with the same prompt are numbered from 0, ordered by seed, then by name; VBench expects 0 to 4. Videos that are
    already there with the same bytes are left out, so an interrupted export can be started again.

    Raises:
        InputError: there are no runs, a run has no `VIDEO`, a prompt cannot be a file name, or another file exists.
        ResourceError: `out` cannot be written.
    """
    runs, out = expanded(runs), expanded(out)
    if not runs.is_dir():
        raise InputError(f"{runs} is not a folder; give the folder that holds the runs")
    records = sorted(runs.glob(f"*/{RECORD}"))
    if not records:
        raise InputError(f"{runs} holds no run: there is no {RECORD} in any folder of it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder")
    check_place(out)
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in records:
        prompt, seed = _identity(path)
        found[prompt].append((seed, path.parent))
    names: dict[Path, Path] = {}
    for prompt, seeded in found.items():
        for index, (_, run) in enumerate(sorted(seeded)):
            source, target = run / VIDEO, out / _name(prompt, index, run)
            if not source.is_file():
                raise InputError(f"{run} has no {VIDEO}; repeat it where mp4 can be written (anyi2v animate --repeat)")
            if target.exists():
                if target.is_file() and filecmp.cmp(source, target, shallow=False):
                    continue
                raise InputError(f"{target} already exists with other contents; move it away, or give another folder")
            names[source] = target
    return names


def export(names: dict[Path, Path]) -> None:
    """Copy the videos of a plan, each atomically; raises ResourceError if a file cannot be written."""
    for source, target in names.items():
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)


def _identity(record: Path) -> tuple[str, int]:
    """Return the prompt and the seed of a run."""
    data: dict[str, Any] = read_json(record)
    prompt, seed = data.get("prompt"), data.get("seed")
    if not isinstance(prompt, str) or type(seed) is not int:
        raise InputError(f"{record} is not the record of a run: it has no prompt or no seed")
    return prompt, seed


def _name(prompt: str, index: int, run: Path) -> str:
    name = f"{prompt}-{index}.mp4"
    bad = sorted({letter for letter in prompt if letter in "/\\" or not letter.isprintable()})
    if bad or not prompt.strip() or prompt.startswith("."):
        reason = f"it has {bad[0]!r}" if bad else "it is empty, or begins with a dot"
        raise InputError(f"{run}: its prompt cannot be a file's name, which VBench reads it from: {reason}")
    if (length := len(name.encode(errors="replace"))) > LONGEST_NAME:
        raise InputError(
            f"{run}: its prompt makes a file's name of {length} bytes, from which VBench reads it; {LONGEST_NAME} are "
            "possible"
        )
    return name
