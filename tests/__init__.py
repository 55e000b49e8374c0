"""The type checker of the test run: beartype, with ints accepted where floats are declared (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
