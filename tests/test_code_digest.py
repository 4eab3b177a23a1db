"""What a recipe's digest covers: the definitions it can reach by name, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmfusion_lib import code_digest, runs
from mmfusion_lib.code_digest import library_digest, reached

RECIPE = "mmfusion_lib.recipes.toy"
FILES = {
    "recipes/toy.py": """
        from .. import probes, shapes
        from ..data import problems
        from ..records import spread

        _LAB = {"seeds": [0, 1, 2]}

        def run_unit(s, unit):
            from ..store import save as keep
            return keep(probes.fit(problems.load(unit)), shapes.Square().area(2))

        def summarise(s, done):
            return spread(done)
        """,
    "probes.py": """
        from functools import lru_cache as cache

        DECAYS = (0.1, 1.0)
        REST = 3

        def fit(data):
            return min(DECAYS, key=lambda d: _loss(d, data))

        def _loss(decay, data):
            return decay + len(data)

        def predict(data):
            return REST

        cache(print)
        """,
    "shapes.py": """
        class Shape:
            def area(self, x):
                return 0

        class Square(Shape):
            def area(self, x):
                return super().area(x) + x * x

            def name(self):
                return "square"
        """,
    "data/__init__.py": "from .shelf import SHELF\nfrom .. import letters\n",
    "data/shelf.py": "SHELF = 1\n",
    "data/problems.py": """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from ..text import cut
        if TYPE_CHECKING:
            from ..probes import predict

        def load(name):
            return cut(name)

        def other(data: predict):
            return None
        """,
    "text.py": """
        from .letters import cut, join
        """,
    "letters.py": """
        def cut(text):
            return text[:_SIZE]

        def join(parts):
            return "".join(parts)

        _SIZE = 4
        """,
    "store.py": """
        import sys

        def save(*values):
            return [sys.executable, "-c", "from mmfusion_lib import store; store._serve()"]

        def _serve():
            return 1
        """,
    "records.py": "def spread(done):\n    return done\n",
    "runs.py": "one = 1\n",
}


class Package:
    """A small package on disk, changed by replacing text."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text.replace("\n        ", "\n"))
        self.before = self.digest()

    def digest(self) -> str:
        return library_digest([RECIPE], self.root)

    def names(self) -> set[str]:
        return {key.removeprefix("mmfusion_lib.") for key in reached([RECIPE], self.root)}

    def replace(self, name: str, old: str, new: str) -> bool:
        """Change a file, say whether the digest changed, and change it back."""
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))
        changed = self.digest() != self.before
        (self.root / name).write_text(text)
        assert self.digest() == self.before
        return changed


@pytest.fixture
def package(tmp_path) -> Package:
    return Package(tmp_path / "mmfusion_lib")


def test_what_is_reached_by_name(package):
    # Followed by hand from run_unit and summarise; "" are a module's other top-level statements.
    assert package.names() == {
        *("recipes.toy:", "recipes.toy:_LAB", "recipes.toy:run_unit", "recipes.toy:summarise"),
        *("probes:", "probes:DECAYS", "probes:fit", "probes:_loss"),
        *("shapes:", "shapes:Square", "shapes:Shape"),
        *("data.problems:", "data.problems:load"),
        *("text:", "text:cut", "letters:", "letters:cut", "letters:_SIZE"),
        *("store:", "store:save", "store:_serve"),
    }


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("probes.py", "def predict", "def unrelated():\n    return 9\n\ndef predict"),  # added
        ("probes.py", "return REST", "return REST + 1"),  # changed, never reached
        ("probes.py", "REST = 3", "REST = 4"),
        ("letters.py", '"".join', '" ".join'),
        ("data/problems.py", "import predict", "import predict, fit"),  # for type checkers only
        ("probes.py", "def fit(data):", 'def fit(data):\n    "A docstring."  # and a comment'),
        ("letters.py", "def cut", '"""Of the module."""\n\ndef cut'),
        ("shapes.py", "class Square(Shape):", 'class Square(Shape):\n    """A square."""\n'),
        ("probes.py", "DECAYS = (0.1, 1.0)\nREST = 3", "REST = 3\nDECAYS = (0.1, 1.0)"),  # order
        ("runs.py", "one = 1", "one = 2"),  # bookkeeping
        ("records.py", "return done", "return [*done]"),
    ],
)
def test_what_changes_nothing(package, name, old, new):
    assert not package.replace(name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("recipes/toy.py", "[0, 1, 2]", "[0, 1]"),  # all of the recipe's own module
        ("probes.py", "key=lambda d", "key=lambda e"),  # a function that is reached
        ("probes.py", "(0.1, 1.0)", "(0.1, 1)"),  # a constant it uses; 1.0 is not 1
        ("probes.py", "decay + len", "decay - len"),  # a helper in the same module
        ("probes.py", "cache(print)", "cache(input)"),  # a statement that runs on import
        ("probes.py", "lru_cache as cache", "wraps as cache"),  # the same name, another function
        ("shapes.py", "x * x", "x * 2"),  # a method of a class that is reached
        ("shapes.py", '"square"', '"Square"'),  # classes count whole
        ("shapes.py", "return 0", "return 1"),  # its base class
        ("letters.py", "[:_SIZE]", "[_SIZE:]"),  # through problems, and handed on by text
        ("letters.py", "= 4", "= 5"),
        ("text.py", "import cut, join", "import join as cut"),
        ("store.py", "return 1", "return 2"),  # named only in a program that is a string
        ("recipes/toy.py", "probes.fit", "probes.predict"),
    ],
)
def test_what_changes_the_digest(package, name, old, new):
    assert package.replace(name, old, new)


def test_a_module_used_as_a_value_counts_whole(package):
    assert not package.replace("probes.py", "REST = 3", "REST = 4")
    toy = package.root / "recipes" / "toy.py"
    toy.write_text(toy.read_text().replace("probes.fit(", "getattr(probes, 'fit')("))
    package.before = package.digest()
    assert package.replace("probes.py", "REST = 3", "REST = 4")


def test_an_attribute_that_is_no_definition_counts_the_module_whole(package):
    toy = package.root / "recipes" / "toy.py"
    toy.write_text(toy.read_text().replace("probes.fit(", "print(probes.__file__, "))
    assert {"probes:predict", "probes:REST", "probes:fit"} <= package.names()


def test_a_module_reached_through_its_package(package):
    toy = package.root / "recipes" / "toy.py"
    toy.write_text(toy.read_text() + "\nfrom .. import data\nx = data.problems.load\n")
    assert "data.problems:other" in package.names()  # through a chain: all of it


def test_a_package_is_its_own_first_level(package):
    toy = package.root / "recipes" / "toy.py"
    toy.write_text(toy.read_text() + "\nfrom .. import data\nx = data.SHELF, data.letters\n")
    assert {"data.shelf:SHELF", "letters:join"} <= package.names()


def test_the_modules_of_every_recipe_are_read_and_bookkeeping_is_not():
    from mmfusion_lib.recipes import ALL

    parts = {part for r in ALL for part in (r.units, r.run_unit, r.summarise)}
    modules = {part.__module__ for part in parts}
    found = {key.split(":")[0] for key in reached(modules, Path(runs.__file__).parent)}
    assert modules <= found  # a function made by a library would be looked for elsewhere
    assert {"mmfusion_lib.encoders", "mmfusion_lib.blocks"} <= found
    assert not found & {f"mmfusion_lib.{name}" for name in ("runs", "records", "code_digest")}


def test_a_recipe_outside_the_package_reaches_nothing():
    parts = SimpleNamespace(units=print, run_unit=Package, summarise=Package)
    assert runs.code_digest(parts) == library_digest([], Path("."))


def test_an_empty_piece_of_an_f_string_does_not_count():
    """Python 3.12 puts one behind a nested f-string, Python 3.11 does not."""
    node = ast.parse("f'{a:<{w}} {b}'").body[0].value
    spec = node.values[0].format_spec  # '<', {w}
    spec.values = [v for v in spec.values if not isinstance(v, ast.Constant) or v.value]
    plain = code_digest._plain(node)
    spec.values.append(ast.Constant(""))
    assert code_digest._plain(node) == plain
    spec.values[-1] = ast.Constant("x")
    assert code_digest._plain(node) != plain
