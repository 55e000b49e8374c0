"""The comparisons of demo and benchmark: a method, and what it is held against."""

from dataclasses import replace

from anyi2v.config import MethodConfig


def variants(config: MethodConfig) -> dict[str, MethodConfig]:
    """The full method, the same without optimisation, and the same without injection."""
    return {
        "full": config,
        "no optimisation": replace(config, optimise_steps=0),
        "no injection": replace(config, inject_hidden=(), inject_query=()),
    }
