"""Both forms of the widgets in a real browser: the still page, and the live one against a true explorer.

The live form has the same front; in place of a notebook's channel it asks this machine, which answers as
the kernel would.
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from explorer_maker import HOSTILE, explorer

from mmfusion_lib import widgets
from mmfusion_lib.widgets import AskWidget, CaptionExplorer

CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Widgets</title>'
    '<meta name="viewport" content="width=device-width">'
    "<style>html[data-theme=dark] body {background: #14181b; color: #dfe5e9}</style></head>"
    "<body>%s</body></html>"
)
# A channel like that of anywidget: messages one way, replies the other.
LIVE = """<div id="live"></div><script type="module">
import widget from "/explorer.js";
const heard = [];
const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)));
const model = {
  on: (name, hear) => heard.push(hear),
  off: () => {},
  send: async (question, _, buffers = []) => {
    const body = JSON.stringify({question, buffers: buffers.map(text)});
    const reply = await (await fetch("/ask", {method: "POST", body})).json();
    heard.forEach((hear) => hear(reply));
  },
};
widget.render({model, el: document.getElementById("live")});
</script>"""


@pytest.fixture(scope="module")
def served():
    """Address of three pages, and the widget that answers the live one."""
    caption, asking = CaptionExplorer(explorer(HOSTILE)), AskWidget(explorer(HOSTILE))
    live = CaptionExplorer(explorer(HOSTILE))
    css = f"<style>{widgets.STYLE}</style>"
    files = {
        "/still": ("text/html", PAGE % (caption.html() + asking.html())),
        "/live": ("text/html", PAGE % (css + LIVE)),
        "/explorer.js": ("text/javascript", widgets.SCRIPT),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            kind, text = files.get(self.path, ("text/plain", ""))
            self.answer(kind, text)

        def do_POST(self):
            found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = [base64.b64decode(part) for part in found["buffers"]]
            self.answer("application/json", json.dumps(live.reply(found["question"], parts)))

        def answer(self, kind, text):
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Shown:
    """A widget as a reader has it."""

    def __init__(self, browser, number=0):
        self.browser = browser
        self.root = browser.driver.find_elements("css selector", ".mmfw")[number]

    def all(self, query):
        return self.root.find_elements("css selector", query)

    def words(self):
        return [word.text for word in self.all(".mmfw-word")]

    def status(self):
        return self.all(".mmfw-status")[0].text

    def choices(self):
        return self.all("button.mmfw-choice")

    def press(self, *keys):
        for key in keys:
            self.browser.driver.switch_to.active_element.send_keys(key)

    def until(self, true):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        drawn_anew = [StaleElementReferenceException]
        wait = WebDriverWait(self.browser.driver, 20, ignored_exceptions=drawn_anew)
        wait.until(lambda _: true())


@pytest.fixture
def still(browser, served):
    browser.driver.get_log("performance")  # of the pages before
    browser.requests.clear()
    browser.open(f"{served}/still")
    return Shown(browser)


RIGHT, END, ENTER, SPACE, TAB = "\ue014", "\ue010", "\ue007", " ", "\ue004"


# The page without a kernel


def test_a_page_asks_nobody_and_runs_no_markup(browser, still, served):
    still.choices()[0].click()
    still.all(".mmfw-map input")[0].click()
    log = [json.loads(entry["message"]) for entry in browser.driver.get_log("performance")]
    sent = [e["message"] for e in log if e["message"]["method"] == "Network.requestWillBeSent"]
    asked = [*browser.requests, *(message["params"]["request"]["url"] for message in sent)]
    assert f"{served}/still" in asked  # the record works
    rest = {url for url in asked if not url.startswith(("data:", "chrome:"))}
    assert rest <= {f"{served}/still", f"{served}/favicon.ico"}
    assert browser.script("return window.hurt") is None
    assert still.all(".mmfw-pick span")[0].text == HOSTILE
    pictures = [e.get_attribute("src") for e in browser.driver.find_elements("css selector", "img")]
    assert pictures and all(source.startswith("data:image/") for source in pictures)


def test_another_word_changes_the_caption(still):
    before, words = still.status(), still.words()
    still.all(".mmfw-word")[1].click()
    other = next(c for c in still.choices() if c.get_attribute("aria-pressed") == "false")
    label = other.get_attribute("aria-label").split(",")[0]
    other.click()
    assert still.status() != before
    assert still.words()[:2] == [words[0], label]
    active = still.browser.driver.switch_to.active_element  # focus stays with the choice
    assert active.get_attribute("aria-label").startswith(label)
    assert active.get_attribute("aria-pressed") == "true"


def test_by_keyboard_alone(still):
    still.browser.script("arguments[0].focus()", still.all(".mmfw-word")[0])
    where = still.all(".mmfw-note")[-1].text
    assert "When it chose" in where
    still.press(RIGHT)
    assert still.all(".mmfw-note")[-1].text != where  # another word, another look
    still.press(ENTER)
    before = still.status()
    still.browser.script("arguments[0].focus()", still.choices()[0])
    still.press(RIGHT, RIGHT, ENTER)
    assert still.status() != before
    still.browser.script("arguments[0].focus()", still.all(".mmfw-map input")[0])
    before = still.status()
    still.press(SPACE)
    assert still.status() != before


def test_word_by_word(still):
    whole = still.words()
    start, following, _ = still.all(".mmfw-row[aria-label='Writing'] button")
    start.click()
    assert still.words() == [] and still.status().endswith("a picture of ...")
    following.click()
    following.click()
    assert still.words() == whole[:2]
    still.choices()[1].click()  # while it grows it stops behind the chosen word
    assert len(still.words()) == 3 and still.words()[:2] == whole[:2]


def test_experts_switch_the_caption_and_what_is_not_stored_says_why(still):
    boxes, before = still.all(".mmfw-map input"), still.status()
    assert [box.is_selected() for box in boxes] == [True] * 3
    boxes[0].click()
    assert still.status() != before
    assert [box.is_enabled() for box in boxes] == [True, False, False]  # two out are not stored
    reason = still.browser.script(
        "return document.getElementById(arguments[0].getAttribute('aria-describedby')).textContent",
        boxes[1],
    )
    assert "needs a kernel" in reason
    boxes[0].click()
    assert still.status() == before
    still.all("[data-all=off]")[0].click()
    assert "no latents" in still.all(".mmfw-note")[-1].text
    locked = still.all(".mmfw-row :is(input, select)")
    assert len(locked) == 7  # upload, beams, length, temperature, and three of noise
    assert not any(each.is_enabled() for each in locked)
    assert all(each.get_attribute("aria-describedby") for each in locked)


def test_pictures_and_looks(still):
    before = still.status()
    still.all(".mmfw-pick")[1].click()
    assert still.all(".mmfw-pick")[1].get_attribute("aria-pressed") == "true"
    assert still.status() != before
    painted = still.browser.script(
        "const c = arguments[0]; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return [c.width, c.height, Math.max(...d.filter((_, n) => n % 4 === 3))]",
        still.all(".mmfw-patches")[0],
    )
    assert painted == [4, 4, 204]  # 4 x 4 patches; 0.8 of 255 where it looked most


def test_questions_in_a_page(browser, still):
    asking = Shown(browser, 1)
    assert len(asking.all("li.mmfw-choice")) == 4
    before = asking.status()
    select = asking.all("select")[0]
    browser.script("arguments[0].focus()", select)
    asking.press("\ue015")  # arrow down
    assert asking.status() != before and asking.status().startswith("Book?")
    assert not asking.all("input[type=text]")[0].is_enabled()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read(browser, still, theme):
    browser.theme(theme)
    assert browser.script(CONTRAST, 4.5) == []


def test_a_phone_shows_all_of_it(browser, served):
    browser.width(390)
    try:
        browser.open(f"{served}/still")
        assert browser.script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.width(1300)


def test_everything_has_a_name(browser, still):
    faults = browser.script(
        """
        return [...document.querySelectorAll("button, input, select, img, [role=group]")].filter((e) => {
          const name = e.textContent + (e.getAttribute("aria-label") ?? "")
            + (e.labels?.[0]?.textContent ?? "") + (e.getAttribute("alt") ?? "");
          return !name.trim() && !(e.alt === "" && e.closest("button")?.textContent.trim());
        }).map((e) => e.outerHTML.slice(0, 200));
        """
    )
    assert faults == []


# With a kernel


@pytest.fixture
def live(browser, served):
    browser.open(f"{served}/live")
    Shown.until(type("Early", (), {"browser": browser})(), lambda: browser.script(
        "return document.querySelectorAll('.mmfw-word').length > 0"
    ))  # fmt: skip
    return Shown(browser)


def test_live_any_word_leads_on(live):
    words = live.words()
    live.all(".mmfw-word")[1].click()
    other = live.choices()[2]
    label = other.get_attribute("aria-label").split(",")[0]
    other.click()
    live.until(lambda: live.words() != words)
    assert live.words()[:2] == [words[0], label]


def test_live_experts_noise_and_temperature(live):
    first, boxes = live.words(), live.all(".mmfw-map input")
    boxes[0].click()
    boxes[1].click()
    live.until(lambda: live.words() != first)
    assert all(box.is_enabled() for box in boxes)  # any set of experts
    source = live.all(".mmfw-map img")[2].get_attribute("src")
    live.all(".mmfw-row[aria-label='Noise on the maps'] option[value=noise]")[0].click()
    live.until(lambda: live.all(".mmfw-map img")[2].get_attribute("src") != source)
    assert live.all(".mmfw-alarm")[0].text == ""


def test_live_upload_good_and_bad(live, tmp_path):
    from PIL import Image

    good, bad = tmp_path / "<b>mine & yours.png", tmp_path / "broken.png"
    Image.new("RGB", (1, 1)).save(good)
    bad.write_bytes(b"no picture")
    live.all("input[type=file]")[0].send_keys(str(bad))
    live.until(lambda: live.all(".mmfw-alarm")[0].text)
    assert "broken.png is not an image that Pillow can read" in live.all(".mmfw-alarm")[0].text
    live.all("input[type=file]")[0].send_keys(str(good))
    live.until(lambda: len(live.all(".mmfw-pick")) >= 3)
    live.until(lambda: "is your picture" in live.all(".mmfw-note")[0].text)
    note = live.all(".mmfw-note")[0].text
    assert "<b>mine & yours.png" in note and "cannot run here: depth" in note
    assert "trained on nothing yet" in note
    assert live.all(".mmfw-alarm")[0].text == ""
