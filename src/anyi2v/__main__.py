"""`python -m anyi2v`, the same program as the command `anyi2v`."""

import sys

from anyi2v.cli import main

if __name__ == "__main__":
    sys.exit(main())
