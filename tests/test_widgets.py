"""The widgets: what a kernel answers, what a page holds, and that nothing shown becomes markup."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest
from explorer_maker import EXPERTS, HOSTILE, explorer
from PIL import Image

from mmfusion_lib import explorer as explorers
from mmfusion_lib import widgets
from mmfusion_lib.errors import InputError
from mmfusion_lib.widgets import AskWidget, CaptionExplorer

BOTH = (CaptionExplorer, AskWidget)


class Parsed(HTMLParser):
    """Tags in order, and what stands in each script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.scripts, self.now = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.now = tag
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        if self.now == "script" and data.strip():
            self.scripts.append(data)

    def handle_endtag(self, tag):
        self.now = ""


@pytest.fixture(scope="module")
def one():
    return CaptionExplorer(explorer(HOSTILE))


def ask(widget, buffers=(), **question):
    found = widget.reply({"picture": 0, "experts": list(EXPERTS), **question}, buffers)
    return json.loads(json.dumps(found))


WRITING = {"beams": 1, "length": 9, "shortest": 6, "temperature": 0.0, "seed": 0}


# The page


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_that_is_shown_becomes_markup(kind):
    widget = kind(explorer(HOSTILE, questions=[HOSTILE], answers=[HOSTILE, "red"]))
    page = Parsed(widget.html())
    assert page.tags == ["div", "style", "script", "noscript", "p", "script"]
    payload, code = page.scripts
    assert "<" not in payload and json.loads(payload) == widget.payload
    assert json.loads(payload)["pictures"][0]["name"] == HOSTILE
    assert HOSTILE not in code


def test_the_script_writes_text_only():
    code = re.sub(r"//.*", "", widgets.SCRIPT)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(", code
    )
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\b|url\(", code + widgets.STYLE)
    assert code.count("export default") == 1 and "</script" not in widgets.SCRIPT


def test_two_on_a_page_do_not_clash(one):
    pages = [Parsed(one.html()) for _ in range(2)]
    assert pages[0].ids and not set(pages[0].ids) & set(pages[1].ids)


def test_no_rule_of_style_reaches_out():
    rules = re.sub(r"/\*.*?\*/|@media[^{]*\{", "", widgets.STYLE, flags=re.S)
    found = re.findall(r"([^{}]+)\{[^{}]*\}", rules)
    assert len(found) > 40
    for rule in found:
        outside = re.sub(r":is\([^)]*\)", "", rule)
        assert all(part.strip().startswith(".mmfw") for part in outside.split(",")), rule


def test_the_page_is_computed_once(one, monkeypatch):
    first = one.payload
    monkeypatch.setattr(one.explorer, "still", lambda kind: pytest.fail("again"))
    assert one.payload is first


# Both forms at once


def test_a_notebook_gets_both_forms(one):
    data, about = one._repr_mimebundle_()
    view = data["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == one.live.model_id and isinstance(about, dict)
    assert data["text/html"].startswith('<div id="mmfw-')
    state = one.live.get_state()
    assert state["_esm"] == widgets.SCRIPT and state["_css"] == widgets.STYLE
    assert len(json.dumps(state, default=str)) < 60_000  # a page repeats it: no pictures in it


def test_without_anywidget_there_is_the_page(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    data, _ = CaptionExplorer(explorer())._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html"}


def test_what_a_page_cannot_hold_is_said_there_and_shown_live(monkeypatch):
    """Without questions a page has nothing to show; live the reader types one."""
    asking = AskWidget(explorer(questions=()))
    data, _ = asking._repr_mimebundle_()
    assert data["text/html"].startswith("<p><strong>There are no questions for the still page")
    assert "application/vnd.jupyter.widget-view+json" in data
    monkeypatch.setattr(explorers, "MOST_BYTES", 100)
    data, _ = CaptionExplorer(explorer())._repr_mimebundle_()
    assert "The still page would take" in data["text/html"]


def test_live_messages_are_answered(one, monkeypatch):
    sent = []
    monkeypatch.setattr(one.live, "send", sent.append)
    one.live._handle_custom_msg({"ask": "front", "view": "v", "number": 3}, [])
    assert sent[0]["view"] == "v" and sent[0]["number"] == 3 and sent[0]["live"]
    assert len(sent[0]["front"]["pictures"]) == 2 and "stored" not in sent[0]["front"]


# What the kernel answers


def test_writing_live_is_what_the_page_has(one):
    tree = ask(one, ask="write", writing=WRITING)["tree"]
    stored = json.loads(json.dumps(one.payload))["stored"][0]["+".join(EXPERTS)]
    taken, choices = tree["nodes"][0]
    assert (taken, [c[:2] for c in choices]) == (0, [c[:2] for c in stored["nodes"][0][1]])
    assert len(tree["nodes"]) < len(stored["nodes"])  # no branches
    other = choices[1][0]
    tree = ask(one, ask="write", writing=WRITING, prefix=[other])["tree"]
    assert tree["nodes"][0][0] == 1 and tree["nodes"][0][1][1][:2] == choices[1][:2]
    assert tree["nodes"][0][1][1][2] == 1


def test_noise_and_maps(one):
    noise = {"kind": "noise", "amount": 1.0, "experts": ["depth"]}
    plain, spoilt = ask(one, ask="maps")["maps"], ask(one, ask="maps", noise=noise)["maps"]
    assert [a["expert"] for a, b in zip(plain, spoilt) if a != b] == ["depth"]
    assert ask(one, ask="write", writing=WRITING, noise=noise) != ask(
        one, ask="write", writing=WRITING
    )


def test_upload():
    widget, file = CaptionExplorer(explorer()), io.BytesIO()
    Image.new("CMYK", (5, 5)).save(file, "JPEG")
    picture = ask(widget, [memoryview(file.getvalue())], ask="upload", name=HOSTILE)["picture"]
    assert picture["name"] == HOSTILE and picture["maps"] == []
    assert "tree" in ask(widget, ask="write", picture=2, experts=[], writing=WRITING)
    bad = ask(widget, [b"no picture"], ask="upload", name=HOSTILE)
    assert (
        bad["error"]
        == f"{HOSTILE} is not an image that Pillow can read: replace it, or leave it out."
    )


def test_questions():
    widget = AskWidget(explorer())
    found = ask(widget, ask="answer", question="book")["answer"]
    assert found["question"] == "Book?" and len(found["ranked"]) == 4
    assert len(ask(widget, ask="answer", question="mug " * 10_000)["answer"]["ranked"]) == 4
    assert "has no words" in ask(widget, ask="answer", question="")["error"]


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ({"ask": "sing"}, "'sing' is no question"),
        ({"ask": "write", "picture": None, "writing": WRITING}, "without a picture"),
        ({"ask": "write", "picture": 9, "writing": WRITING}, "no picture 9"),
        ({"ask": "write", "writing": {**WRITING, "beams": 99}}, "beams is 99"),
        ({"ask": "write", "writing": {"tempo": 3}}, "no writing that can be used: .*'tempo'"),
        ({"ask": "write"}, "no writing that can be used: 'writing'"),
        ({"ask": "write", "writing": {**WRITING, "seed": 0.5}}, "seed is 0.5: give a whole number"),
        ({"ask": "maps", "noise": {"kind": "blur"}}, "lacks kind, amount or experts"),
        ({"ask": "maps", "noise": {"kind": "x", "amount": 1, "experts": []}}, "'x'"),
    ],
)
def test_what_fails_is_said(one, question, named):
    found = ask(one, view="v", number=1, **question)
    assert re.search(named, found["error"]) and (found["view"], found["number"]) == ("v", 1)


def test_no_answers_to_rank():
    with pytest.raises(InputError, match="no answers to rank"):
        AskWidget(explorer(questions=(), answers=()))
