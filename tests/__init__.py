"""The type checker of the test run: beartype, with ints accepted where floats are declared (PEP 484)."""

import jaxtyping
from beartype import BeartypeConf, beartype

from .annotations import checked

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

# what the import hook of --jaxtyping-packages puts before everything that is defined
jaxtyping.jaxtyped = checked
