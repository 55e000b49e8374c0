"""The command `anyi2v compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from anyi2v.cli.messages import result


@dataclass(frozen=True)
class Compare:
    """Compare finished runs on one page: results, frames, and the settings in which they differ.

    Examples:
    $ anyi2v compare star again
    $ anyi2v compare sweep/0001-a-red-ball-s0 sweep/0001-a-red-ball-s1 star --out seeds
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of two or more runs."""
    out: Path = Path("comparison")
    """Output folder for index.html and comparison.png, which replace those of an earlier comparison."""

    def run(self) -> None:
        """Write the page and the picture; print the page's path."""
        from anyi2v.reports.comparison import write_comparison

        page = write_comparison(self.out, self.runs)
        result(page, f"page: {page}")
