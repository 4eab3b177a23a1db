"""What a reader meets: every page of the built book in a real browser, with the network off."""

from __future__ import annotations

from pathlib import Path

import pytest

CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


def test_page_is_complete_without_a_network(browser, site, page):
    browser.requests.clear()
    browser.open(f"{site}/{page}")
    assert any(url.endswith(page) for url in browser.requests)  # the record works
    assert browser.foreign() == []


def test_mathematics_is_drawn(browser, site, page):
    browser.open(f"{site}/{page}")
    written, drawn, faulty, raw = browser.script(
        """
        const article = document.querySelector("article") ?? document.body;
        const text = article.cloneNode(true);
        text.querySelectorAll("pre, code, mjx-container, script, .cell_output").forEach(e => e.remove());
        return [
          article.querySelectorAll(".math").length,
          article.querySelectorAll("mjx-container").length,
          article.querySelectorAll("mjx-merror, .cell_output mjx-merror").length,
          /\\$\\$|\\\\frac|\\\\mathrm|\\\\begin/.test(text.textContent),
        ];
        """
    )
    assert drawn >= written and faulty == 0 and not raw


def test_no_horizontal_scroll_on_a_phone(browser, site, page):
    browser.width(390)
    try:
        browser.open(f"{site}/{page}")
        overflow, culprits = browser.script(
            """
            const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
            const out = [...document.querySelectorAll("main *")]
              .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
              .slice(0, 5).map(e => e.tagName + "." + e.className);
            return [wide, out];
            """
        )
        assert overflow <= 0, culprits
    finally:
        browser.width(1300)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(browser, site, page, theme):
    browser.open(f"{site}/{page}")
    browser.theme(theme)
    failures = browser.script(CONTRAST, 4.5)
    assert failures == []


def test_every_picture_has_alternative_text(browser, site, page):
    browser.open(f"{site}/{page}")
    missing = browser.script(
        """
        const named = i => i.getAttribute("alt") === ""
          && i.closest("button, label")?.textContent.trim();
        return [...document.querySelectorAll("img")]
          .filter(i => !named(i))  // a picture beside the name of its control is decoration
          .filter(i => !(i.getAttribute("alt") ?? "").trim()
                       || /^(_images|\\.\\.\\/_images|_build)/.test(i.getAttribute("alt")))
          .map(i => i.getAttribute("src"));
        """
    )
    assert missing == []


def test_controls_can_be_reached_by_keyboard(browser, site, page):
    """Nothing that answers a click is out of the Tab key's reach or without a name."""
    browser.open(f"{site}/{page}")
    faults = browser.script(
        """
        const controls = document.querySelectorAll("main button, main a[href], main input, main summary");
        return [...controls].filter(e => e.checkVisibility({visibilityProperty: true})).filter(e => {
          const label = (e.textContent + (e.getAttribute("aria-label") ?? "") + (e.title ?? "")
            + (e.dataset.tooltip ?? "") + (e.dataset.bsOriginalTitle ?? "")
            + (e.labels?.[0]?.textContent ?? "")).trim();
          return e.tabIndex < 0 || (!label && !e.querySelector("img[alt]"));
        }).map(e => e.outerHTML.slice(0, 200));
        """
    )
    assert faults == []


def test_links_inside_the_book_lead_somewhere(browser, site, page):
    browser.open(f"{site}/{page}")
    broken = browser.script(
        """
        const links = [...document.querySelectorAll("a[href]")].map(a => a.href);
        const here = [...new Set(links.filter(h => h.startsWith(location.origin)))];
        return here.filter(h => {
          const request = new XMLHttpRequest();
          request.open("HEAD", h.split("#")[0], false); request.send();
          return request.status !== 200;
        });
        """
    )
    assert broken == []


def test_search_works_offline(browser, site):
    browser.requests.clear()
    browser.open(f"{site}/search.html?q=notation")
    found = browser.driver.execute_async_script(
        """
        const done = arguments[arguments.length - 1]; let left = 50;
        const look = () => {
          const hits = [...document.querySelectorAll("#search-results a")].map(a => a.href);
          if (hits.length || !left--) done(hits); else setTimeout(look, 100);
        };
        look();
        """
    )
    assert any("notation.html" in address for address in found)
    assert browser.foreign() == []


def test_fusion_figure_steps_by_keyboard(browser, site):
    """The arrow keys move through the stages of one fusion layer, and the note under it follows."""
    browser.open(f"{site}/03_interactive_prompting.html")
    buttons = browser.driver.find_elements("css selector", "main [data-step]")
    if not buttons:
        pytest.skip("the page was built without running its cells")
    note = browser.driver.find_element("css selector", "main .note")
    before = note.text
    buttons[0].send_keys("\ue014")  # arrow right
    active = browser.driver.switch_to.active_element
    assert note.text != before
    assert active.get_attribute("aria-pressed") == "true"
    assert active.get_attribute("data-step") != buttons[0].get_attribute("data-step")
