"""Mutation testing of the method: each line below is changed, one at a time, and some test has to fail.

    python -m tests.mutations                 # all, about half an hour on two cores; writes tests/mutations.md
    python -m tests.mutations eta cache       # those whose name contains one of the words; writes nothing

A mutation (tests/mutations.toml) replaces a piece of source text that occurs exactly once in its file, in a copy of
`src`; then the test files that belong to the part are run against the copy, one after the other, up to the first
failure. The working tree is never changed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "mutations.toml"
TABLE = ROOT / "tests" / "mutations.md"


@dataclass(frozen=True)
class Mutation:
    """One mistake that someone might make."""

    name: str
    file: str
    """Below src/anyi2v."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Test files, below tests/ and without .py, one of which has to fail."""


@dataclass(frozen=True)
class Outcome:
    """The test that failed under a mutation, if one did."""

    mutation: Mutation
    failed: str | None

    @property
    def verdict(self) -> str:
        """Whether any test noticed."""
        return "killed" if self.failed else "SURVIVED"


def mutations() -> list[Mutation]:
    """The list in tests/mutations.toml."""
    found = []
    for file, entries in tomllib.loads(LIST.read_text(encoding="utf-8")).items():
        tests = entries.pop("tests")
        for name, (old, new, *further) in entries.items():
            found.append(Mutation(name, file, old, new, (*further, *tests)))
    return found


def run(mutation: Mutation) -> Outcome:
    """The first test that fails under the mutation; raises RuntimeError if the tests cannot be run at all."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
        for weights in (ROOT / "src").rglob("*.safetensors"):
            (source / weights.relative_to(ROOT / "src")).symlink_to(weights)
        changed = source / "anyi2v" / mutation.file
        changed.write_text(mutated(changed.read_text(encoding="utf-8"), mutation), encoding="utf-8")
        found = (failing_test(source, file) for file in mutation.tests)
        return Outcome(mutation, next((name for name in found if name is not None), None))


def mutated(text: str, mutation: Mutation) -> str:
    """The file's text with the mistake in it; raises ValueError unless the piece to replace occurs exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}"
        )
    return text.replace(mutation.old, mutation.new)


def failing_test(source: Path, file: str) -> str | None:
    """The first test of tests/`file`.py that fails with the package in folder `source`, or None."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{file}.py"]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != (1 if failed else 0):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr}")
    return failed[1] if failed else None


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    survived = sum(outcome.verdict == "SURVIVED" for outcome in outcomes)
    lines = [
        "# Mutations of the method",
        "",
        f"Written by `python -m tests.mutations`: {len(outcomes)} mutations, {survived} survived. Each changes one",
        "place of the source; named is the first test that failed.",
        "",
        "| mutation | file | from | to | noticed by |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        m = outcome.mutation
        noticed = f"`{outcome.failed}`" if outcome.failed else outcome.verdict
        cells = [m.name, f"`{m.file}`", _code(m.old), _code(m.new), noticed.replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`{text}`" if text else "nothing"


def main() -> int:
    """Runs the mutations; 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of the names of mutations; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="test runs at a time")
    options = parser.parse_args()
    chosen = [m for m in mutations() if not options.words or any(word in m.name for word in options.words)]
    for mutation in chosen:  # all before the first run, which takes a while
        mutated((ROOT / "src" / "anyi2v" / mutation.file).read_text(encoding="utf-8"), mutation)
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, chosen):
            outcomes.append(outcome)
            print(f"{outcome.verdict:10} {outcome.mutation.name}: {outcome.failed or ''}", flush=True)
    if not options.words:
        TABLE.write_text(table(outcomes), encoding="utf-8")
    survivors = [outcome for outcome in outcomes if outcome.verdict == "SURVIVED"]
    print(f"{len(outcomes)} mutations, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
