"""Command line entry point: `python -m weights_converters` is the same as `anyi2v convert`."""

import sys

from anyi2v.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
