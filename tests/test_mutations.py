"""The list of mutations fits the source, and the script tells a noticed mistake from an unnoticed one."""

import pytest

from .mutations import ROOT, Mutation, mutated, mutations, run


@pytest.mark.parametrize("mutation", mutations(), ids=lambda m: f"{m.file}: {m.name}")
def test_every_mutation_changes_one_place_of_the_source(mutation: Mutation) -> None:
    text = (ROOT / "src" / "anyi2v" / mutation.file).read_text(encoding="utf-8")
    assert mutated(text, mutation) != text
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in mutation.tests)


def test_a_mistake_is_noticed_and_a_new_comment_is_not() -> None:
    mistake = Mutation("sign", "method/noise.py", "return x1 - x0, y1 - y0", "return x0 - x1, y0 - y1", ("test_noise",))
    harmless = Mutation("comment", "method/noise.py", "return x1 - x0", "return +x1 - x0", ("test_noise",))
    assert run(mistake).verdict == "killed"
    assert run(harmless).verdict == "SURVIVED"
