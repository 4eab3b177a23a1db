"""Both forms of the widgets in a real browser: the still page, and the live one against a true explorer.

The live form has the same front; in place of a notebook's channel it asks this machine, which answers as
the kernel would.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from explorer_maker import EXPERTS, HOSTILE, explorer
from selenium.webdriver.support.select import Select
from shown import DOWN, END, ENTER, HOME, RIGHT, SPACE, Shown

from mmfusion_lib import widgets
from mmfusion_lib.explorer import Noise, Writing
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
    const reply = await (await fetch(location.pathname, {method: "POST", body})).json();
    heard.forEach((hear) => hear(reply));
  },
};
widget.render({model, el: document.getElementById("live")});
</script>"""


@pytest.fixture(scope="module")
def truth():
    """An explorer like those of the live pages, to compare with. One answer is hostile."""
    return explorer(HOSTILE, answers=["red", "blue mug", "two", HOSTILE])


@pytest.fixture(scope="module")
def log():
    """What the live pages asked the kernel, the newest last."""
    return []


@pytest.fixture(scope="module")
def served(truth, log):
    """Address of a still page, and of two live ones with a kernel that answers one thing at a time."""
    caption, asking = CaptionExplorer(explorer(HOSTILE)), AskWidget(explorer(HOSTILE))
    kernels = {
        "/live": CaptionExplorer(explorer(HOSTILE)),
        "/asking": AskWidget(explorer(HOSTILE, answers=truth.answers)),
    }
    busy = threading.Lock()
    live = PAGE % (f"<style>{widgets.STYLE}</style>" + LIVE)
    files = {
        "/still": ("text/html", PAGE % (caption.html() + asking.html())),
        **{address: ("text/html", live) for address in kernels},
        "/explorer.js": ("text/javascript", widgets.SCRIPT),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            kind, text = files.get(self.path, ("text/plain", ""))
            self.answer(kind, text)

        def do_POST(self):
            found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = [base64.b64decode(part) for part in found["buffers"]]
            with busy:
                log.append(found["question"])
                reply = kernels[self.path].reply(found["question"], parts)
            self.answer("application/json", json.dumps(reply))

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


@pytest.fixture
def still(browser, served):
    browser.driver.get_log("performance")  # of the pages before
    browser.requests.clear()
    browser.open(f"{served}/still")
    return Shown(browser)


# The page without a kernel


def test_a_page_asks_nobody_and_runs_no_markup(browser, still, served):
    still.choices()[0].click()
    still.all(".mmfw-map input")[0].click()
    browser.listen()
    assert f"{served}/still" in browser.requests  # the record works
    rest = {url for url in browser.requests if not url.startswith(("data:", "chrome:"))}
    assert rest <= {f"{served}/still", f"{served}/favicon.ico"}
    assert browser.script("return window.hurt") is None
    assert still.all(".mmfw-pick span")[0].text == HOSTILE
    pictures = [e.get_attribute("src") for e in browser.driver.find_elements("css selector", "img")]
    assert pictures and all(source.startswith("data:image/") for source in pictures)


def test_another_word_changes_the_caption(still):
    before, words = still.status(), still.words()
    still.all(".mmfw-word")[1].click()
    other = still.other()
    label = other.get_attribute("aria-label").split(",")[0]
    other.click()
    assert still.status() != before
    assert still.words()[:2] == [words[0], label]
    active = still.browser.driver.switch_to.active_element  # focus stays with the choice
    assert active.get_attribute("aria-label").startswith(label)
    assert active.get_attribute("aria-pressed") == "true"


def test_a_pointer_over_a_word_shows_where_it_looked(still):
    chosen, words = still.look(), still.all(".mmfw-word")
    looks = []
    for word in words[:2]:
        still.hover(word)
        looks.append(still.look())
        assert looks[-1][0].startswith(f'When it chose "{word.text}"')
    assert len({text for text, _ in (chosen, *looks)}) == 3
    assert len({patches for _, patches in (chosen, *looks)}) == 3
    still.hover(still.all(".mmfw-status")[0])
    assert still.look() == chosen  # back to the word that is chosen


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
    asking.press(DOWN)
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
          return !name.trim() && !(e.alt === "" && e.closest("button, label")?.textContent.trim());
        }).map((e) => e.outerHTML.slice(0, 200));
        """
    )
    assert faults == []


# With a kernel


def opened(browser, address, drawn):
    """A live widget that has been answered."""
    browser.open(address)
    live = Shown(browser)
    live.until(lambda: live.all(drawn))
    return live


@pytest.fixture
def live(browser, served, log):
    log.clear()
    return opened(browser, f"{served}/live", ".mmfw-word")


@pytest.fixture
def asking(browser, served, log):
    log.clear()
    return opened(browser, f"{served}/asking", "li.mmfw-choice")


def words_of(tree):
    """The caption of a tree, word by word."""
    words, node = [], 0
    while node >= 0:
        taken, choices = tree["nodes"][node]
        token, _, node = choices[taken]
        words.append("(end)" if token == tree["end"] else tree["words"][str(token)][0])
    return words


def ranked(answer):
    return [(text, pytest.approx(score, abs=0.0051)) for text, score in answer["ranked"]]


def test_live_any_word_leads_on(live):
    words = live.words()
    live.all(".mmfw-word")[1].click()
    other = live.choices()[2]
    label = other.get_attribute("aria-label").split(",")[0]
    other.click()
    live.until(lambda: live.words() != words)
    assert live.words()[:2] == [words[0], label]


def test_live_any_set_of_experts(live, log, truth):
    boxes = live.all(".mmfw-map input")
    boxes[0].click()
    boxes[1].click()
    live.until(lambda: live.words() == words_of(truth.caption(0, EXPERTS[2:])))
    assert log[-1]["experts"] == list(EXPERTS[2:])
    assert all(box.is_enabled() for box in boxes)
    assert live.alarm() == ""


@pytest.mark.parametrize(
    ("name", "key", "changed"),
    [
        ("Beams", "3", {"beams": 3}),
        ("Most tokens", HOME, {"length": 5}),
        ("Temperature", END, {"temperature": 5}),
    ],
)
def test_live_writing(live, log, truth, name, key, changed):
    """A control changes what the kernel is asked for, nothing else of it, and the caption."""
    wanted, before = {**vars(truth.writing), **changed}, live.words()
    live.control(name).send_keys(key)
    live.until(lambda: live.words() != before)
    assert log[-1]["writing"] == wanted
    assert live.words() == words_of(truth.caption(0, EXPERTS, writing=Writing(**wanted)))
    shown = [output.text for output in live.all("[aria-label='How it is written'] output")]
    assert shown == [str(wanted["length"]), f"{wanted['temperature']:g}"]


def test_live_draw_again(live, log, truth):
    for seed in (0, 1, 2):
        before = live.words()
        if seed == 0:
            live.control("Temperature").send_keys(END)
        else:
            live.button("Draw again").click()
        wanted = Writing(**{**vars(truth.writing), "temperature": 5, "seed": seed})
        drawn = words_of(truth.caption(0, EXPERTS, writing=wanted))
        assert drawn != before
        live.until(lambda drawn=drawn: live.words() == drawn)
        assert log[-1]["writing"] == vars(wanted)


def test_live_noise(live, log, truth):
    """Kind, strength and the maps that are spoilt: all reach the maps and the caption."""
    wanted = {"kind": "none", "amount": 0.5, "experts": list(EXPERTS)}

    def turn(name, key, **changed):
        wanted.update(changed)
        noise = Noise(wanted["kind"], wanted["amount"], tuple(wanted["experts"]))
        maps = [each["image"] for each in truth.maps(0, noise)]
        words = words_of(truth.caption(0, EXPERTS, noise=noise))
        assert maps != live.maps() and words != live.words()
        live.control(name).send_keys(key)
        live.until(lambda: live.maps() == maps and live.words() == words)
        assert [question["noise"] for question in log[-2:]] == [wanted] * 2
        assert {question["ask"] for question in log[-2:]} == {"maps", "write"}

    turn("Noise", DOWN, kind="blur")
    turn("Amount", END, amount=1)
    turn("On", END, experts=["ocr_detection"])


def test_live_wrong_names(live, truth):
    """What stands below the maps is what the model reads, also where the pictures stay as they were."""

    def says():
        return [each.text for each in live.all(".mmfw-says")]

    wrong = [each["says"] for each in truth.maps(0, Noise("wrong", 1.0, ("ocr_detection",)))]
    before = says()
    Select(live.control("On")).select_by_value("ocr_detection")
    Select(live.control("Noise")).select_by_visible_text("wrong names")
    live.control("Amount").send_keys(END)
    live.until(lambda: says() == wrong)
    assert wrong != before
    Select(live.control("Noise")).select_by_visible_text("none")
    live.until(lambda: says() == before)


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


def test_live_upload_beside_another_view(live, served, log, tmp_path):
    """Another view of the explorer has added a picture: mine is not where the page would count it."""
    from PIL import Image

    mine, theirs = tmp_path / "mine.png", io.BytesIO()
    Image.new("RGB", (1, 1)).save(mine)
    Image.new("RGB", (1, 1), "red").save(theirs, "PNG")
    question = {"ask": "upload", "name": "theirs", "view": "another", "number": 1}
    buffers = [base64.b64encode(theirs.getvalue()).decode()]
    body = json.dumps({"question": question, "buffers": buffers}).encode()
    added = json.load(urllib.request.urlopen(f"{served}/live", body))["picture"]["number"]
    live.all("input[type=file]")[0].send_keys(str(mine))
    live.until(lambda: "mine.png" in live.all(".mmfw-note")[0].text)
    live.until(lambda: log[-1]["ask"] == "write")
    assert log[-1]["picture"] == added + 1


# Questions with a kernel


def test_live_questions(asking, log, truth):
    """Chosen or typed, by key or by button: the answers and their scores are the model's."""
    own = asking.control("or your own")

    def answered(question):
        asking.until(lambda: asking.status().startswith(question))
        answer = truth.answer(0, EXPERTS, question)
        assert asking.ranking() == ranked(answer) and len(answer["ranked"]) == 4
        assert asking.status() == f"{question} {answer['ranked'][0][0]}."
        assert asking.all(".mmfw-said")[0].text == f"Asked: {question}"

    answered("Two mug on the left?")
    asking.control("Ask").send_keys(END)
    answered("Book?")
    own.send_keys("sign on the right", ENTER)
    answered("Sign on the right?")
    assert log[-1]["question"] == "sign on the right" and log[-1]["experts"] == list(EXPERTS)
    own.clear()
    own.send_keys("red mug")
    asking.button("Ask").click()
    answered("Red mug?")
    assert asking.alarm() == ""


def test_live_own_question_stays_while_experts_and_pictures_change(asking, truth):
    question = "Sign on the right?"
    asking.control("or your own").send_keys(question, ENTER)
    asking.until(lambda: asking.ranking() == ranked(truth.answer(0, EXPERTS, question)))
    asking.all(".mmfw-map input")[0].click()
    asking.until(lambda: asking.ranking() == ranked(truth.answer(0, EXPERTS[1:], question)))
    asking.all(".mmfw-pick")[1].click()
    asking.until(lambda: asking.ranking() == ranked(truth.answer(1, EXPERTS, question)))
    stored = Select(asking.control("Ask"))
    assert not stored.all_selected_options  # so that the first one can be chosen again, too
    stored.select_by_index(0)
    first = stored.first_selected_option.text
    asking.until(lambda: asking.ranking() == ranked(truth.answer(1, EXPERTS, first)))


def test_live_empty_question(asking):
    own = asking.control("or your own")
    own.send_keys(" ?", ENTER)
    asking.until(lambda: "has no words: ask something" in asking.alarm())
    assert asking.status() == ""
    own.send_keys("book", ENTER)
    asking.until(lambda: asking.status().startswith("Book?"))
    assert asking.alarm() == ""


def test_live_hostile_question_is_text(browser, asking):
    """The answers hold a hostile one, too. Marks that questions lose are not needed to hurt."""
    question = "<img src=x onerror=hurt=1>?"
    asking.control("or your own").send_keys(question, ENTER)
    asking.until(lambda: asking.status().startswith(question))
    assert asking.all(".mmfw-said")[0].text == f"Asked: {question}"
    assert HOSTILE in [text for text, _ in asking.ranking()]
    sources = [image.get_attribute("src") for image in asking.all("img")]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert browser.script("return window.hurt") is None
