"""The tree reads in the direction of the data: a module imports from its own layer and those below, in no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "softlabels",
        "identity",
        "configuration",
        "progress",
        "sampler",
        "workspace",
        "outputs",
        "references",
        "privacy",
    ),
    ("encodings", "metrics"),
    ("store", "fidelity"),
    ("caches",),
    ("datasets", "views", "models", "losses", "devices", "transforms", "mixing", "corruptions"),
    ("sources", "runs", "artefacts"),
    (
        *("dump", "planning", "training", "trainer", "evaluation", "compression", "report", "teacher", "tokenize"),
        *("verification", "importing"),
    ),
    ("stages",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = [name for names in LAYERS[:4] for name in names]
# Twins that compute on the device live beside their numpy module and belong to layer 3.
TORCH_SUFFIX = "_torch"


def dotted(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for folder in ("pipeline", "stages") for path in sorted((ROOT / folder).rglob("*.py"))}


def imports(module: str) -> set[str]:
    """Every module of this project that ``module`` imports, wherever the statement stands."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            # `from pipeline import store` names a module, `from pipeline.store import open_cache` does not.
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("pipeline", "stages")} - {module}


def part_of(module: str) -> str:
    """The unit that the layers are made of: ``store`` for ``pipeline.store.reader``."""
    head, *rest = module.split(".")
    return head if head == "stages" else (rest[0] if rest else "")


def layer(module: str) -> int | None:
    if module.endswith(TORCH_SUFFIX):
        return LAYER_OF["models"]
    return LAYER_OF.get(part_of(module))


def test_every_module_has_a_layer() -> None:
    unknown = [name for name in MODULES if name != "pipeline" and layer(name) is None]
    assert not unknown, f"not in LAYERS of {Path(__file__).name}: {unknown}"


def test_every_layer_names_something_that_exists() -> None:
    parts = {part_of(name) for name in MODULES}
    assert not [name for name in LAYER_OF if name not in parts]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upward(module: str) -> None:
    own = layer(module)
    upward = sorted(name for name in imports(module) if own is not None and (layer(name) or 0) > own)
    assert not upward, f"{module} is in layer {own}"


def test_imports_resolve_to_modules_that_exist() -> None:
    missing = {(module, name) for module in MODULES for name in imports(module) if name not in MODULES}
    assert not missing


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph, each as the path that closes it."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for following in sorted(edges.get(node, ())):
                visit(following, [*path, node])
            done.add(node)

    for node in sorted(edges):
        visit(node, [])
    return found


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_circles_between_modules() -> None:
    # A package's own __init__ gathers what its modules define; they never import from it.
    assert not circles({module: imports(module) for module in MODULES})


def test_no_circles_between_parts() -> None:
    edges: dict[str, set[str]] = {}
    for module in MODULES:
        if not module.endswith(TORCH_SUFFIX):
            edges.setdefault(part_of(module), set()).update(part_of(name) for name in imports(module))
    assert not circles({part: others - {part} for part, others in edges.items()})


def test_the_label_sources_alone_join_store_and_torch() -> None:
    below = {name for name in MODULES if part_of(name) in LAYERS[4]}
    assert not {(module, name) for module in below for name in imports(module) if part_of(name) == "store"}


def test_the_lower_layers_import_without_torch() -> None:
    names = [name for name in MODULES if part_of(name) in WITHOUT_TORCH and not name.endswith(TORCH_SUFFIX)]
    assert "pipeline.store" in names and "pipeline.encodings" in names
    imported = "\n".join(f"import {name}" for name in ["pipeline", *names])
    code = f"import sys\n{imported}\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, stages.cli, stages.cache\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
