"""Mutation testing of the method: each line below is changed, one at a time, and some test has to fail.

    python -m tests.mutations                 # all, about a quarter of an hour on two cores; writes tests/mutations.md
    python -m tests.mutations eta cache       # those whose name contains one of the words; writes nothing

A mutation (tests/mutations.toml) replaces a piece of source text that occurs exactly once in its file, in a copy of
`src`; then the test files that belong to the part are run against the copy. How many tests fail (counted up to
`COUNTED`) says in how many places the mistake would be noticed. The working tree is never changed.
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
COUNTED = 3
"""Failing tests after which a run ends."""


@dataclass(frozen=True)
class Mutation:
    """One mistake that someone might make."""

    name: str
    file: str
    """Below src/anyi2v."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Test files, below tests/ and without .py, in which it has to be noticed."""


@dataclass(frozen=True)
class Outcome:
    """The tests that failed under a mutation."""

    mutation: Mutation
    failed: tuple[str, ...]

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
            found.append(Mutation(name, file, old, new, (*tests, *further)))
    return found


def run(mutation: Mutation) -> Outcome:
    """The names of the tests that fail under the mutation; raises RuntimeError if the tests cannot be run at all."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
        for weights in (ROOT / "src").rglob("*.safetensors"):
            (source / weights.relative_to(ROOT / "src")).symlink_to(weights)
        changed = source / "anyi2v" / mutation.file
        changed.write_text(mutated(changed.read_text(encoding="utf-8"), mutation), encoding="utf-8")
        return Outcome(mutation, failing_tests(source, mutation.tests))


def mutated(text: str, mutation: Mutation) -> str:
    """The file's text with the mistake in it; raises ValueError unless the piece to replace occurs exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}"
        )
    return text.replace(mutation.old, mutation.new)


def failing_tests(source: Path, tests: Sequence[str]) -> tuple[str, ...]:
    """The tests that fail with the package in folder `source`."""
    files = [f"tests/{name}.py" for name in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--maxfail={COUNTED}", *files]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1) != bool(failed):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr}")
    return tuple(failed)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    survived = sum(outcome.verdict == "SURVIVED" for outcome in outcomes)
    lines = [
        "# Mutations of the method",
        "",
        f"Written by `python -m tests.mutations`: {len(outcomes)} mutations, {survived} survived. Each changes one",
        f"place of the source; the named test is the first that fails. Failing tests are counted up to {COUNTED}.",
        "",
        "| mutation | file | from | to | tests that fail | first of them |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        m = outcome.mutation
        count = f"{len(outcome.failed)}{'+' if len(outcome.failed) == COUNTED else ''}"
        said = f"`{outcome.failed[0].removeprefix('tests/')}`" if outcome.failed else outcome.verdict
        cells = [m.name, f"`{m.file}`", _code(m.old), _code(m.new), count, said.replace("|", "\\|")]
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
            print(f"{outcome.verdict:10} {outcome.mutation.name}: {' '.join(outcome.failed)}", flush=True)
    if not options.words:
        TABLE.write_text(table(outcomes), encoding="utf-8")
    survivors = [outcome for outcome in outcomes if outcome.verdict == "SURVIVED"]
    print(f"{len(outcomes)} mutations, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
