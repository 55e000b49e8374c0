"""The house: who may import whom, what the product never imports, how long files and functions may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PRODUCT = [*SOURCES, *sorted((ROOT / "weights_converters").glob("*.py"))]
FLOORS = (
    ("errors", "timing", "versions", "execution"),
    tuple(f"execution.{name}" for name in ("limits", "threads", "grad_modes", "machine", "cluster")),
    ("files", "hook_points", "backbone.config"),
    ("taps", "method.config", "checkpoints.header"),
    ("backbone.sparse_config", "comparators.settings", "method.recipes", "tracks", "diffusion", "numerics"),
    ("operators",),
    ("images",),
    ("backbone", "examples"),
    ("checkpoints", "guard", "execution.packed", "execution.graphs"),
    ("denoiser", "samplers"),
    ("job",),
    ("method",),
    ("comparators",),
    ("pipeline", "execution.memory"),
    ("latency.options", "segments"),
    ("latency",),
    ("reports",),
    ("evaluation",),
    ("batch",),
    ("micro.world",),
    ("micro.training",),
    ("micro.benchmark", "micro"),
    ("studio",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; a name stands for a module or for all modules of a package, the longer name first."""


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src" / "anyi2v").with_suffix("").parts).removesuffix(".__init__")


def below(path: Path) -> str:
    """A file of the product by its path, below `anyi2v` if it lies there."""
    return path.relative_to(ROOT).as_posix().removeprefix("src/anyi2v/")


def floor(name: str) -> tuple[int, str]:
    found = [(i, f) for i, names in enumerate(FLOORS) for f in names if name == f or name.startswith(f + ".")]
    assert found, f"{name} has no floor"
    # the longest name is the most special one
    return max(found, key=lambda pair: len(pair[1]))


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = frozenset(map(module, SOURCES))


def of_package(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it, by their names below `anyi2v`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("anyi2v"):
            room = node.module.removeprefix("anyi2v").lstrip(".")
            inside = {f"{room}.{alias.name}".lstrip(".") for alias in node.names}
            found |= inside & MODULES
            if not inside <= MODULES:
                found.add(room)
    return found & MODULES


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_imports_go_down(path: Path) -> None:
    name = module(path)
    if name == "__init__":  # re-exports the public names
        return
    here, package = floor(name)
    for target in of_package(path):
        there, other = floor(target)
        assert there < here or other == package, f"{name} imports {target}"


def test_imports_make_no_circle() -> None:
    graph = {module(path): of_package(path) - {module(path)} for path in SOURCES if module(path) != "__init__"}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"circles among {sorted(graph)}"


def test_the_product_never_imports_the_benchmarks() -> None:
    for path in [*SOURCES, *(ROOT / "weights_converters").glob("*.py")]:
        assert not {name for name in imports(path) if name.split(".")[0] == "benchmarks"}, path


def test_numerics_know_nothing_but_torch_and_errors() -> None:
    for path in (ROOT / "src/anyi2v/numerics").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("anyi2v")}
        assert all(name.startswith("anyi2v.errors") for name in ours), path


@pytest.mark.parametrize("path", [*SOURCES, *(ROOT / "weights_converters").glob("*.py")], ids=lambda p: p.stem)
def test_oracles_are_never_imported_by_the_product(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"diffusers", "transformers", "sklearn", "scipy"}


@pytest.mark.parametrize("path", PRODUCT, ids=below)
def test_files_can_be_read_in_one_go(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


MANY_PARAMETERS = {
    "pipeline.py animate",  # public: what a job is made of
    "backbone/unet.py UNet.forward",  # public: everything that a pass can be asked for
}
KERNELS = "operators/triton/"
"""Kernels get every pointer, stride and size as a parameter of its own."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[tuple[str, Function]]:
    """All functions of a file by the file and their names, methods as `Class.name`."""
    found: list[tuple[str, Function]] = []

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, Function | ast.ClassDef)
            name = f"{outer}{child.name}" if named else ""
            if isinstance(child, Function):
                found.append((f"{below(path)} {name}", child))
            visit(child, f"{name}." if named else outer)

    visit(ast.parse(path.read_text()), "")
    return found


def body_lines(function: Function) -> int:
    """Lines of the body without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: Function) -> list[str]:
    """Names of the parameters, `*args` and `**options` among them, but for those that a caller does not give."""
    a = function.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [x.arg for x in given if x.arg not in ("self", "cls", "ctx")]


LOOP = "pipeline.py animate"


@pytest.mark.parametrize("path", PRODUCT, ids=below)
def test_functions_are_short(path: Path) -> None:
    """Those of the method and the pipeline are shorter than others; only the loop, read as a whole, is not."""
    limit = 40 if below(path).startswith(("method/", "pipeline.py", "job.py")) else 60
    found = {name: lines for name, f in functions(path) if (lines := body_lines(f)) > limit and name != LOOP}
    assert not found


@pytest.mark.parametrize("path", PRODUCT, ids=below)
def test_functions_have_few_parameters(path: Path) -> None:
    if not below(path).startswith(KERNELS):
        many = {name for name, f in functions(path) if len(parameters(f)) > 8}
        assert many <= MANY_PARAMETERS


def test_the_loop_is_read_as_a_whole() -> None:
    animate = dict(functions(ROOT / "src/anyi2v/pipeline.py"))[LOOP]
    assert any(isinstance(node, ast.For) for node in animate.body)
    assert body_lines(animate) <= 60


WORDS = re.compile(r"\b(cpu|cuda|gpu|mps|onednn|mkldnn|triton|mkl)s?\b", re.IGNORECASE)
PRIVATE = re.compile(r"torch\._(?!_version__)|torch\.ops\.|\._C\b")
NAME_DEVICES = {
    "checkpoint": "loads and saves tensors of any device",
    "embeddings": "reads files into the host's memory",
    "foreign": "reads files into the host's memory",
}


@pytest.mark.parametrize("path", sorted((ROOT / "src/anyi2v/backbone").glob("*.py")), ids=lambda p: p.stem)
def test_networks_name_no_device_and_no_library(path: Path) -> None:
    """Who computes an operator is decided in operators/."""
    if path.stem not in NAME_DEVICES:
        assert not WORDS.findall(path.read_text())
    assert not {name for name in imports(path) if name.startswith("anyi2v.execution")}


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_private_names_of_pytorch_stay_in_two_packages(path: Path) -> None:
    if not module(path).startswith(("operators.", "execution.")):
        assert not PRIVATE.findall(path.read_text())


def test_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    cells = [part for line in text.splitlines() if line.startswith("|") for part in line.split("`")[1::2]]
    files = [cell for cell in cells if cell.endswith(".py")]
    assert len(files) > 10
    for file in files:
        assert list((ROOT / "src" / "anyi2v").rglob(Path(file).name)), file


def test_no_module_has_a_public_name() -> None:
    """Importing `anyi2v.x` would put the module in the place of the function."""
    import anyi2v

    assert not {path.stem for path in (ROOT / "src" / "anyi2v").iterdir()} & set(anyi2v.__all__)
