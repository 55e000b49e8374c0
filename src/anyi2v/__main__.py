"""The command `anyi2v`, also `python -m anyi2v`."""

import sys


def main() -> int:
    """Run the program and return its exit code, which is 130 for Ctrl-C even while its modules are imported."""
    try:
        from anyi2v.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("anyi2v: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
