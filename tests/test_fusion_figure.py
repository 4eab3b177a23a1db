"""The figure of a fusion layer: what it says, that it stands alone, and how it answers a reader."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
from test_plots import luminance

from mmfusion_lib.errors import InputError
from mmfusion_lib.fusion_figure import INK, KINDS, FusionFigure


class Parsed(HTMLParser):
    """Elements in order, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def having(self, attribute: str) -> list[dict]:
        return [attrs for _, attrs in self.elements if attribute in attrs]


def scene(html: str, number: int) -> list[str]:
    """Letters of the squares of one stage, in order."""
    part = html.split(f'<g data-scene="{number}"')[1].split("<g data-scene")[0].split("</svg>")[0]
    words = [unescape(word) for word in re.findall(r"<text[^>]*>([^<]*)</text>", part)]
    return [word for word in words if len(word) <= 2]


@pytest.fixture(scope="module")
def html() -> str:
    return FusionFigure(2, 1, 1, 1, 1)._repr_html_()


def test_every_token_is_where_the_equations_put_it(html):
    # N_i = 2, N_t = 1, all prompts 1. Image side, then text side; x is the sign of what is dropped.
    gone, sent = "\u00d7", "u"
    assert scene(html, 0) == ["z", "z", "x"]
    asked = ["z", "z", "c", "q"], ["x", "c", "q"]
    after = ["z'", "z'", "c'", "q'"], ["x'", "c'", "q'"]
    assert scene(html, 1) == asked[0] + after[0] + asked[1] + after[1]
    kept = [gone] * 3 + [sent], [gone] * 2 + [sent]  # only the query prompts' outputs
    assert scene(html, 2) == asked[0] + kept[0] + asked[1] + kept[1]
    assert scene(html, 3) == [*kept[0], "y", *kept[1], "y"]
    told = ["z", "z", "f", "y"], ["x", "f", "y"]
    after = ["z'", "z'", "f'", "y'"], ["x'", "f'", "y'"]
    assert scene(html, 4) == told[0] + after[0] + told[1] + after[1]
    left = ["z'", "z'", gone, gone], ["x'", gone, gone]  # as many tokens as came in
    assert scene(html, 5) == told[0] + left[0] + told[1] + left[1]


def test_the_words_have_the_numbers():
    notes = FusionFigure(3, 2, 1, 0, 4).notes()
    assert len(notes) == 6
    assert "3 image tokens and 2 text tokens" in notes[0]
    assert "no query context prompts and 1 query prompt," in notes[1]
    assert "4 on the image side, 3 on the text side" in notes[1]  # 3 + 0 + 1, 2 + 0 + 1
    assert "8 on the image side, 7 on the text side" in notes[4]  # 3 + 4 + 1, 2 + 4 + 1


def test_it_is_well_formed_and_asks_nothing_of_a_network(html):
    page = Parsed(html)
    assert page.open == []
    assert not page.having("src") and not page.having("href")
    assert not re.search(r"https?:|url\(|@import|fetch\(", html)


def test_two_on_a_page_do_not_clash():
    pages = [FusionFigure()._repr_html_() for _ in range(2)]
    ids = [{attrs["id"] for attrs in Parsed(page).having("id")} for page in pages]
    assert ids[0] and ids[0].isdisjoint(ids[1])
    for page in pages:  # and no rule of style reaches out of its own figure
        rules = re.findall(r"(?m)^\s*([#.a-z][^{}@]*)\{", page.split("</style>")[0])
        assert rules and all(rule.startswith("#fusion-") for rule in rules)


def test_headings_are_escaped():
    html = FusionFigure(image_name="<script>alert(1)</script>", text_name='"&')._repr_html_()
    page = Parsed(html)
    assert page.open == [] and html.count("<script>") == 1
    assert "<script>alert(1)</script>" in page.words and '"&' in page.words


@pytest.mark.parametrize("kind", KINDS)
def test_letters_can_be_read_and_edges_seen(kind):
    _, fill, edge, ink, _ = KINDS[kind]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(ink, fill) >= 4.5  # WCAG: text
    assert contrast(edge, "#FFFFFF") >= 3  # WCAG: graphics
    assert contrast(INK, "#FFFFFF") >= 4.5


def test_squares_stay_inside_their_column():
    html = FusionFigure(8, 8, 8, 8, 8)._repr_html_()
    squares = [
        (float(attrs["x"]), float(attrs["width"]))
        for tag, attrs in Parsed(html).elements
        if tag == "rect"
    ]
    for x, width in squares:  # columns are 0 to 172 and 188 to 360
        left = 0 if x < 180 else 188
        assert left - 0.1 <= x and x + width <= left + 172.1


def test_without_scripts_all_stages_stand_in_words(html):
    fallback = re.search(r"<noscript>(.*?)</noscript>", html, re.S)[1]
    assert fallback.count("<li>") == 6


@pytest.mark.parametrize(
    ("field", "value", "range_"),
    [("query_prompts", 0, "1 to 8"), ("fusion_context_prompts", 9, "0 to 8"),
     ("text_tokens", 0, "1 to 8"), ("query_context_prompts", -1, "0 to 8")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(field, value, range_):
    with pytest.raises(InputError, match=f"{field}={value} cannot be drawn: choose {range_}"):
        FusionFigure(**{field: value})


# A page as small as the script needs it: six steps, two moves, six scenes, a note, and a bar.
PAGE = """
const make = (dataset) => ({
  dataset, style: {display: "?"}, attributes: {}, textContent: "", heard: {}, focused: 0,
  setAttribute(name, value) { this.attributes[name] = value; },
  addEventListener(name, run) { this.heard[name] = run; },
  focus() { this.focused += 1; },
});
const six = [0, 1, 2, 3, 4, 5];
const steps = six.map((n) => make({step: n, note: "note " + n}));
const scenes = six.map((n) => make({scene: n}));
const moves = [make({move: "-1"}), make({move: "1"})];
const note = make({}), bar = make({});
const root = {
  querySelectorAll: (q) => ({"[data-step]": steps, "[data-scene]": scenes, "[data-move]": moves})[q],
  querySelector: (q) => ({".note": note, ".bar": bar})[q],
};
globalThis.document = {getElementById: () => root};
const state = () => [
  scenes.flatMap((s, n) => s.style.display === "" ? [n] : []),
  steps.flatMap((s, n) => s.attributes["aria-pressed"] === "true" ? [n] : []), note.textContent];
const press = (key) => {
  let stopped = 0;
  bar.heard.keydown({key, preventDefault() { stopped += 1; }, stopPropagation() { stopped += 1; }});
  return stopped;
};
"""
PLAY = """
const seen = [];
steps[3].heard.click(); seen.push(state());
moves[1].heard.click(); seen.push(state());
moves[0].heard.click(); moves[0].heard.click(); seen.push(state());
press("ArrowRight"); seen.push(state());
press("End"); press("ArrowRight"); seen.push(state());
press("Home"); press("ArrowLeft"); seen.push(state());
console.log(JSON.stringify({seen, tab: press("Tab"), arrow: press("ArrowRight"),
  focused: steps.map((s) => s.focused)}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node; browsers test it elsewhere")
def test_buttons_and_arrow_keys_step_through_the_stages(html):
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    done = subprocess.run(
        ["node", "-e", PAGE + script + PLAY], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    at = [3, 4, 2, 3, 5, 0]  # click 4; Next; Back twice; right; End and right; Home and left
    assert found["seen"] == [[[n], [n], f"note {n}"] for n in at]
    assert found["tab"] == 0 and found["arrow"] == 2  # only keys of its own are taken
    # right: 3; End: 5; right: 5; Home: 0; left: 0; right: 1
    assert found["focused"] == [2, 1, 0, 1, 0, 2]
