"""Digest of the code that decides a recipe's numbers: what its modules can reach, and no more.

The unit is a definition: a top-level function, class or assignment. Those of the recipe's modules
all count. From there each name leads on, to definitions of the same module and, through imports at
the top or inside functions, to those of other modules of this package::

    probes.fit_probe(...)   only ``fit_probe`` of the imported module, and what that uses
    getattr(probes, name)   all of the module: it is used in another way
    Probe.predict           all of the class: classes count whole

So a function that is added to a module and that the recipe does not use changes nothing. Of a module
that is reached, the other top-level statements count, because they run. Comments, docstrings, the
order of definitions, imports for type checkers and the bookkeeping modules never count. A variable
that has the name of a definition counts as a use of it: rather too much than too little.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .files import digest

BOOKKEEPING = ("code_digest", "records", "runs")
REST = ""  # the name of a module's other top-level statements

Place = tuple[str, str | None]  # ("mmfusion_lib.probes", "fit_probe"); None: the whole module


class _Module(NamedTuple):
    definitions: dict[str, list[ast.AST]]
    imports: dict[str, list[Place]]


def library_digest(modules: Iterable[str], root: Path) -> str:
    """16 hexadecimal digits for all that :func:`reached` finds."""
    return digest(reached(modules, root))


def reached(modules: Iterable[str], root: Path) -> dict[str, Any]:
    """``{"mmfusion_lib.probes:fit_probe": code}``; comparing two tells what differs.

    Args:
        modules: where to start, as ``mmfusion_lib.recipes.paper_cost``; one outside the package
            reaches nothing.
        root: folder of the package.
    """
    read, known = _memory(root, _state(root))
    found: dict[str, Any] = {}
    entered: set[str] = set()
    todo: list[Place] = [(module, None) for module in modules]
    while todo:
        where, name = todo.pop()
        if where not in entered:
            entered.add(where)
            todo.append((where, REST))
        if where not in read:
            read[where] = _read(where, root)
        key = f"{where}:{name}"
        if key in found or not read[where].definitions:
            continue
        if key not in known:
            known[key] = _follow(where, name, read[where], root)
        code, places = known[key]
        if code is not None:
            found[key] = code
        todo += places
    return found


def _state(root: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a file of the package has changed."""
    found = ((str(path), path.stat()) for path in sorted(root.rglob("*.py")))
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


@lru_cache(maxsize=1)
def _memory(
    root: Path, state: tuple[tuple[str, int, int], ...]
) -> tuple[dict[str, _Module], dict[str, tuple[Any, list[Place]]]]:
    """Modules and definitions that were read, for the recipes that reach the same ones."""
    return {}, {}


def _follow(where: str, name: str | None, module: _Module, root: Path) -> tuple[Any, list[Place]]:
    """Code that counts for one place, None where only what it leads to does; and where it leads."""
    if name in module.definitions:
        nodes = module.definitions[name]
        uses = {use for node in nodes for use in _uses(node, where, module, root)}
        code = [[_plain(node) for node in nodes], sorted(map(repr, uses))]
        return code, [place for _, place in uses]
    if name in module.imports:  # handed on from another module
        return module.imports[name], module.imports[name]
    if name and _file(f"{where}.{name}", root):  # a module, as attribute of its package
        return None, [(f"{where}.{name}", None)]
    # The whole module, or a name that it makes in another way.
    return None, [(where, each) for each in module.definitions]


def _read(where: str, root: Path) -> _Module:
    """Definitions and imports of a module; none of one that does not count."""
    path = _file(where, root)
    if path is None:
        return _Module({}, {})
    definitions: dict[str, list[ast.AST]] = {REST: []}
    outside: list[ast.AST] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        else:
            outside += ast.walk(node)
            names = _assigned(node)
        for name in names:
            definitions.setdefault(name, []).append(node)
    return _Module(definitions, _imports(outside, where, root))


def _assigned(node: ast.AST) -> list[str]:
    """Names that an assignment makes; ``REST`` for other statements, none for imports and text."""
    if isinstance(node, ast.Import | ast.ImportFrom) or _is_text(node):
        return []
    targets = []
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    parts = [p for t in targets for p in (t.elts if isinstance(t, ast.Tuple) else [t])]
    if not parts or not all(isinstance(part, ast.Name) for part in parts):
        return [REST]  # it changes something that is there already
    return [part.id for part in parts]


def _file(where: str, root: Path) -> Path | None:
    """The file of a module of this package, unless it is bookkeeping."""
    package, *parts = where.split(".")
    if package != root.name or (parts and parts[0] in BOOKKEEPING):
        return None
    path = root.joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if path.is_file() else None


def _imports(nodes: Iterable[ast.AST], where: str, root: Path) -> dict[str, list[Place]]:
    """Where the names lead that import statements among ``nodes`` bind."""
    found: dict[str, list[Place]] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.split(".")[0]
                found.setdefault(alias.asname or module, []).append((module, None))
        elif isinstance(node, ast.ImportFrom):
            base = where.split(".") if node.level else []
            is_package = root.joinpath(*base[1:]).is_dir()  # it is its own level 1
            base = base[: len(base) - node.level + is_package] if node.level else base
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                place = (inner, None) if _file(inner, root) else (base, alias.name)
                found.setdefault(alias.asname or alias.name, []).append(place)
    return found


def _uses(node: ast.AST, where: str, home: _Module, root: Path) -> Iterator[tuple[str, Place]]:
    """Every name that a definition reads, with the place it leads to."""
    nodes = list(ast.walk(node))
    for text in [
        n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]:
        if f"from {root.name}" in text:  # a program for another process is code too
            with suppress(SyntaxError):
                nodes += ast.walk(ast.parse(text))
    attributes = {id(n.value): n.attr for n in nodes if isinstance(n, ast.Attribute)}
    imports = _imports(nodes, where, root)
    for name in (n for n in nodes if isinstance(n, ast.Name)):
        for module, inner in [*imports.get(name.id, []), *home.imports.get(name.id, [])]:
            yield name.id, (module, inner or attributes.get(id(name)))
        if name.id in home.definitions:
            yield name.id, (where, name.id)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or any other constant that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_nothing(piece: ast.AST) -> bool:
    return isinstance(piece, ast.Constant) and piece.value == ""


def _plain(value: Any) -> Any:
    """A node as nested lists. What is empty is left out, so all versions of Python agree."""
    if isinstance(value, ast.JoinedStr):  # Python 3.12 puts "" behind a nested f-string
        value = ast.JoinedStr([v for v in value.values if not _is_nothing(v)])
    if isinstance(value, ast.AST):
        fields = [(name, v) for name, v in ast.iter_fields(value) if v is not None and v != []]
        return [type(value).__name__, *([name, _plain(v)] for name, v in fields)]
    if isinstance(value, list):
        return [_plain(v) for v in value if not _is_text(v)]
    return repr(value)
