"""What import statements name: modules, and packages that are to be installed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.paths import ROOT

# Of a module that is not called like the distribution that brings it.
DISTRIBUTIONS = {"yaml": "pyyaml", "google": "protobuf", "cuda": "cuda-bindings"}


def imported_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that nodes import, and the names they take from them, with their module's."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def find_file(module: str) -> Path | None:
    """The file of a module of this repository; None where it has none of that name."""
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def files_of(modules: Iterable[str], apart: str | None = None) -> set[Path]:
    """The files of modules and of all of ours that they import, anywhere in them, and so on.

    Modules whose name begins with `apart` are left out.
    """
    found: set[Path] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        file = None if apart and module.startswith(apart) else find_file(module)
        if file is not None and file not in found:
            found.add(file)
            todo += imported_names(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return found


def needed_modules(folder: Path) -> set[str]:
    """The modules that a folder's files import and that neither Python nor this folder's bring."""
    files = [file for file in folder.rglob("*.py") if "cpp" not in file.parts]
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    names = {name for tree in trees for name in imported_names(ast.walk(tree))}
    own = {file.parent.name for file in folder.parent.glob("*/__init__.py")} | {"optimum"}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - own


def distribution_of(module: str) -> str:
    """The name under which a module is installed, as requirements write it."""
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))
