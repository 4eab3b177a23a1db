"""A headless Chromium that can reach nothing but the built book, served from this machine."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HTML = Path(__file__).resolve().parents[2] / "book" / "_build" / "html"
SKIPPED_FOLDERS = {"_static", "_sources", "_images", "reports"}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line on the terminal for each."""

    def log_message(self, *args) -> None:
        pass


def pages() -> list[str]:
    """Addresses of the book's own pages, relative to its root."""
    files = sorted(HTML.rglob("*.html"))
    names = [file.relative_to(HTML) for file in files]
    return [name.as_posix() for name in names if name.parts[0] not in SKIPPED_FOLDERS]


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Address of the built book, or a skip that says how to build it."""
    if not (HTML / "intro.html").is_file():
        pytest.skip("no built book: run `jupyter-book build book` first")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Browser:
    """A page at a time, with a record of every address that it asked for."""

    def __init__(self, driver) -> None:
        self.driver = driver
        self.requests: list[str] = []

    def open(self, address: str) -> None:
        """Load a page and wait until its scripts, and its mathematics, are done."""
        self.driver.get(address)
        self.driver.execute_async_script(
            """
            const done = arguments[arguments.length - 1];
            const typeset = () => window.MathJax?.startup?.promise
              ? MathJax.startup.promise.then(() => done(), () => done()) : done();
            if (document.readyState === "complete") setTimeout(typeset, 100);
            else addEventListener("load", () => setTimeout(typeset, 100));
            """
        )
        self.listen()

    def listen(self) -> None:
        """Add to the record what was asked for since."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    def foreign(self) -> list[str]:
        """Requests that were meant for another machine."""
        asked = [urlsplit(url) for url in self.requests]
        return [
            url.geturl()
            for url in asked
            if url.scheme in ("http", "https", "ws", "wss") and url.hostname != "127.0.0.1"
        ]

    def theme(self, name: str) -> None:
        """Switch to the ``light`` or the ``dark`` look, without waiting for transitions."""
        self.driver.execute_script(
            "document.documentElement.dataset.theme = document.documentElement.dataset.mode ="
            " arguments[0];",
            name,
        )

    def width(self, pixels: int) -> None:
        """Show the page as a screen of this width does."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 500},
        )

    def script(self, code: str, *arguments):
        """Run JavaScript in the page and return its value."""
        return self.driver.execute_script(code, *arguments)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium, or a skip where it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromium = chromium or shutil.which("google-chrome")
    driver_file = shutil.which("chromedriver")
    if not chromium or not driver_file:
        pytest.skip("Chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "force-prefers-reduced-motion",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_file))
    driver.set_script_timeout(30)
    yield Browser(driver)
    driver.quit()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that name ``page`` run once for each page of the built book."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages() or [pytest.param("", marks=_no_book())])


def _no_book() -> pytest.MarkDecorator:
    return pytest.mark.skip(reason="no built book: run `jupyter-book build book` first")
