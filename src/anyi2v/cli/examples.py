"""The command `anyi2v examples`: inputs that ship with the package. Does not import torch."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from anyi2v.cli.messages import LOGGER, remark, result
from anyi2v.examples import copy_examples, examples


@dataclass(frozen=True)
class Examples:
    """List the example inputs that ship with the package, or copy them to a folder to edit them.

    Each is a condition image with a track file and a prompt for the micro backbone. The example "mesh" needs the extra
    "mesh".

    Examples:
    $ anyi2v examples
    $ anyi2v animate --example edge --out first
    $ anyi2v examples --out inputs
    """

    out: Path | None = None
    """Folder to copy all files to; existing files are never replaced. None: only list the examples."""

    def run(self) -> None:
        """Print one line per example, or copy the files and print the command that runs each copy."""
        if self.out is None:
            rows = [(name, chosen.title, chosen.prompt) for name, chosen in examples().items()]
            first, second = (max(len(row[k]) for row in rows) for k in (0, 1))
            for name, title, prompt in rows:
                print(f"{name:{first}}  {title:{second}}  {prompt}")
            LOGGER.info("to run one: anyi2v animate --example NAME; to copy all: anyi2v examples --out FOLDER")
            return
        files = copy_examples(self.out)
        for name, chosen in examples().items():
            remark(shlex.join(["anyi2v", "animate", *chosen.arguments(self.out), "--out", name]))
        result(self.out, f"{self.out}: {len(files)} files, used by the commands above")
