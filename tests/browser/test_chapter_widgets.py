"""The still widgets of the built chapter 5, at the size that a reader meets, with the network off."""

from __future__ import annotations

from statistics import median

import pytest
from shown import DOWN, Shown

PAGE = "05_training_and_few_shot.html"
MOST_BYTES = 3 * 2**20  # of all widgets of a page together
SLOWEST = 100  # ms, the median of several
# Clicks each of some buttons; milliseconds until the words of the caption are drawn anew and laid out.
TIMED = """
const [widget, buttons, done] = arguments;
const words = widget.querySelector(".mmfw-words");
(async () => {
  const times = [];
  for (const button of buttons) {
    const drawn = new Promise((then) => new MutationObserver((_, self) => {
      self.disconnect();
      then();
    }).observe(words, { childList: true }));
    const start = performance.now();
    widget.querySelector(button).click();
    await drawn;
    words.getBoundingClientRect();
    times.push(performance.now() - start);
  }
  done(times);
})();
"""


@pytest.fixture
def twins(browser, site):
    """The caption explorer and the ask widget, or a skip where the page was built without its cells."""
    browser.listen()  # to the pages before
    browser.requests.clear()
    browser.open(f"{site}/{PAGE}")
    if not browser.driver.find_elements("css selector", ".cell_output"):
        pytest.skip("the page was built without running its cells")
    heads = browser.driver.find_elements("css selector", ".mmfw > .mmfw-head:first-child")
    assert [head.text for head in heads] == ["Caption explorer", "Ask about a picture"]
    return Shown(browser, 0), Shown(browser, 1)


def test_all_widgets_of_the_page_weigh_less_than_three_megabytes(browser, twins):
    weights = browser.script(
        """
        const bytes = (part) => new Blob([part.textContent]).size;
        return [...document.querySelectorAll(".mmfw")].map((widget) =>
          [...widget.parentElement.querySelectorAll("script, style")].map(bytes));
        """
    )
    assert [len(parts) for parts in weights] == [3, 3]  # style, data and script of each
    assert sum(map(sum, weights)) < MOST_BYTES, weights


def test_without_a_network_choices_and_experts_change_what_is_said(browser, twins, site):
    caption, asking = twins
    captions = []
    for number in range(len(caption.all(".mmfw-pick"))):
        caption.click(caption.all(".mmfw-pick")[number])
        whole, boxes = caption.status(), caption.all(".mmfw-map input")
        captions.append({whole})
        for box in boxes:
            caption.click(box)
            captions[-1].add(caption.status())
            caption.click(box)
            assert caption.status() == whole
        caption.click(caption.all(".mmfw-word")[0])
        caption.click(caption.other())
        assert caption.status() != whole
    assert max(map(len, captions)) > 1  # at least one expert matters for at least one picture

    before = asking.ranking()
    asking.click(asking.all(".mmfw-map input")[0])
    assert asking.ranking() != before
    before = asking.status()
    browser.script("arguments[0].focus()", asking.all("select")[0])
    asking.press(DOWN)
    assert asking.status() != before

    browser.listen()
    assert f"{site}/{PAGE}" in browser.requests  # the record works
    assert browser.foreign() == []


@pytest.mark.parametrize("what", ["choice", "expert", "picture"])
def test_the_page_responds_at_once(browser, twins, what):
    caption = twins[0]
    caption.click(caption.all(".mmfw-word")[0])
    stored = caption.all("button.mmfw-choice:not([disabled])")
    buttons = {
        "choice": [f"[data-choice='{each.get_attribute('data-choice')}']" for each in stored],
        "expert": ["[data-turn]"],
        "picture": [".mmfw-pick:nth-child(2)", ".mmfw-pick:nth-child(1)"],
    }[what]
    times = browser.driver.execute_async_script(TIMED, caption.root, (buttons * 6)[:6])
    assert len(times) == 6 and median(times) < SLOWEST, times
