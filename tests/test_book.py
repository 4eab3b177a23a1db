"""How the book is built: failures fail, the execution cache is honest, generated tables appear.

Each test builds a book of one or two pages with the real configuration and extensions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `book` is not installed")
pytest.importorskip("jupyter_book", reason="the extra `book` is not installed")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
STAMP = "import time\nprint('stamp', time.time_ns())"


class SmallBook:
    """A repository of a few files: the real ``_config.yml`` and ``_ext``, pages of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.book = folder, folder / "book"
        for name in ("_ext", "_assets"):
            shutil.copytree(BOOK / name, self.book / name)
        shutil.copy(BOOK / "_config.yml", self.book)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (self.book / "references.bib").touch()
        self.write("mmfusion_lib/part.py", "VALUE = 1\n")
        self.write("book/_toc.yml", "format: jb-book\nroot: index\n")

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def notebook(self, *code: str, metadata: dict | None = None) -> None:
        cells = [nbformat.v4.new_markdown_cell("# Page")]
        cells += [nbformat.v4.new_code_cell(text, metadata=metadata or {}) for text in code]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)
        nbformat.write(notebook, self.book / "index.ipynb")

    def build(self, **environment: str) -> subprocess.CompletedProcess:
        """The README's own words: ``jupyter-book build book``."""
        program = shutil.which("jupyter-book", path=str(Path(sys.executable).parent))
        command = [program, "build", "book"]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        settings = {"PYTHONPATH": path, "MMFUSION_SCALE": "smoke", "MMFUSION_DEVICE": "cpu"}
        variables = os.environ | settings | environment
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True
        )

    def page(self) -> str:
        return (self.book / "_build" / "html" / "index.html").read_text(encoding="utf-8")

    def stamp(self) -> str:
        return re.search(r"stamp (\d+)", self.page()).group(1)

    def key(self) -> str:
        return re.search(r"Executed as <code>(.+?)</code>", self.page()).group(1)


def launch_links(page: str) -> list[str]:
    """Addresses of the Binder and Colab buttons."""
    hosts = r'href="(https://(?:colab\.research\.google\.com|mybinder\.org)/[^"]+)"'
    return re.findall(hosts, page)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallBook:
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    return SmallBook(tmp_path)


def test_a_failing_cell_fails_the_build_every_time(small):
    small.notebook("print('before')", "raise RuntimeError('the cell that fails')")
    for _ in range(2):  # an incremental build must not forget the failure
        result = small.build()
        assert result.returncode != 0
        assert "the cell that fails" in result.stdout + result.stderr


def test_execution_cache_follows_the_library(small):
    small.notebook(STAMP)
    assert small.build().returncode == 0
    stamp, key = small.stamp(), small.key()

    assert small.build().returncode == 0  # nothing changed: nothing runs
    assert (small.stamp(), small.key()) == (stamp, key)

    small.write("mmfusion_lib/part.py", "VALUE = 2\n")
    assert small.build().returncode == 0
    assert small.stamp() != stamp and small.key() != key
    caches = small.book / "_build" / ".execution"
    assert [folder.name for folder in caches.iterdir()] == [small.key()]  # the old one is gone


def test_key_sees_data_results_packages_scale_and_device(small, monkeypatch):
    monkeypatch.syspath_prepend(BOOK / "_ext")
    import execution_key

    monkeypatch.setenv("MMFUSION_SCALE", "smoke")
    monkeypatch.setenv("MMFUSION_DEVICE", "cpu")
    before = execution_key.parts(small.book)
    assert before["data"] == "none" and before["device"] == "cpu"
    small.write("book/results/runs/a.json", "{}")
    assert execution_key.parts(small.book)["records"] != before["records"]
    small.write("data/figures/train.parquet", "rows")
    monkeypatch.setenv("MMFUSION_DATA", str(small.folder / "data"))
    data = execution_key.parts(small.book)["data"]
    small.write("data/figures/train.parquet", "more rows")
    assert execution_key.parts(small.book)["data"] != data != "none"
    monkeypatch.setattr(execution_key.metadata, "version", lambda name: "0")
    assert execution_key.parts(small.book)["packages"] != before["packages"]
    monkeypatch.setenv("MMFUSION_SCALE", "lab")
    assert execution_key.parts(small.book)["scale"] == "lab"


def test_page_shows_static_twins_alternative_text_and_generated_tables(small):
    """One build for all that a page shows; `records` is a stand-in."""
    small.write(
        "stand_in/sitecustomize.py",
        textwrap.dedent(
            """
            import sys, types
            stub = types.ModuleType("mmfusion_lib.records")
            stub.markdown = lambda what: f"| what | value |\\n|---|---|\\n| {what} | **0.65** |"
            sys.modules["mmfusion_lib.records"] = stub
            import mmfusion_lib
            mmfusion_lib.records = stub
            """
        ),
    )
    twin = textwrap.dedent(
        """
        class Both:
            def _repr_mimebundle_(self, **kwargs):
                live = {"model_id": "0", "version_major": 2, "version_minor": 0}
                view = "application/vnd.jupyter.widget-view+json"
                return {view: live, "text/html": "<b>the twin</b>", "text/plain": "Both()"}
        Both()
        """
    )
    plot = "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()"
    bar = "from tqdm.auto import tqdm\nprint(sum(tqdm(range(3), desc='a bar')))"
    figure = {"mystnb": {"image": {"alt": "A line rises."}, "figure": {"caption": "Rising."}}}
    small.notebook(twin, bar, plot, metadata=figure)
    table = nbformat.read(small.book / "index.ipynb", as_version=4)
    table.cells[0].source += "\n\n```{records} claims:01\n```\n\n$x^2$"
    nbformat.write(table, small.book / "index.ipynb")

    path = os.pathsep.join([str(small.folder / "stand_in"), str(ROOT)])
    result = small.build(PYTHONPATH=path)
    assert result.returncode == 0, result.stderr[-2000:]
    page = small.page()
    assert "the twin" in page and "html-manager" not in page  # the loader of live widgets
    assert launch_links(page) == []  # no address, no buttons
    assert re.search(r'<img [^>]*alt="A line rises\."', page) and "Rising." in page
    assert "claims:01" in page and "<strong>0.65</strong>" in page
    assert "a bar" not in re.sub(r"(?s)<div class=.cell_input.*?</pre>", "", page)
    scripts = re.findall(r'<script[^>]* src="([^"]+)"', page)
    assert scripts and not [address for address in scripts if "//" in address]
    assert (small.book / "_build/html/_static/mathjax/tex-chtml.js").is_file()


def test_launch_buttons_come_from_the_one_address_field(small):
    config = yaml.safe_load((BOOK / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"].pop("url") is not None
    config["repository"]["url"] = "https://github.com/someone/somewhere"
    config["execute"]["execute_notebooks"] = "off"
    small.write("book/_config.yml", yaml.safe_dump(config))
    small.notebook("1")
    assert small.build().returncode == 0
    assert launch_links(small.page()) == [
        "https://mybinder.org/v2/gh/someone/somewhere/main?urlpath=lab/tree/book/index.ipynb",
        "https://colab.research.google.com/github/someone/somewhere/blob/main/book/index.ipynb",
    ]


def test_committed_configuration_keeps_clear_of_known_traps():
    config = yaml.safe_load((BOOK / "_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["raise_on_error"] is True
    assert config["execute"]["timeout"] >= 3600  # seconds a cell; the default of 30 kills training
    assert config["sphinx"]["config"]["nb_ipywidgets_js"] == {}
    assert not (BOOK / "_static").exists()  # its scripts would be put into every page


def test_every_page_of_the_table_of_contents_exists():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))

    def files(entry: dict) -> list[str]:
        inside = entry.get("chapters", []) + entry.get("sections", [])
        own = [entry["file"]] if "file" in entry else []
        return own + [name for child in inside for name in files(child)]

    names = [toc["root"], *(name for part in toc["parts"] for name in files(part))]
    missing = [n for n in names if not any((BOOK / f"{n}{s}").is_file() for s in (".md", ".ipynb"))]
    assert missing == []
