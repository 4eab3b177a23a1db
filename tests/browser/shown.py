"""A widget as a reader has it: what it shows, and hands on its controls."""

from __future__ import annotations

RIGHT, DOWN, HOME, END = "\ue014", "\ue015", "\ue011", "\ue010"
ENTER, SPACE = "\ue007", " "


class Shown:
    """The widget of this number on the page that is open."""

    def __init__(self, browser, number=0):
        self.browser = browser
        self.root = browser.driver.find_elements("css selector", ".mmfw")[number]

    def all(self, query):
        return self.root.find_elements("css selector", query)

    def words(self):
        return [word.text for word in self.all(".mmfw-word")]

    def status(self):
        return self.all(".mmfw-status")[0].text

    def alarm(self):
        return self.all(".mmfw-alarm")[0].text

    def choices(self):
        return self.all("button.mmfw-choice")

    def other(self):
        """A word that was weighed up, not taken, and can be chosen."""
        return self.all("button.mmfw-choice[aria-pressed=false]:not([disabled])")[0]

    def look(self):
        """Where it looked: in words, and as it is painted."""
        painted = "return arguments[0].toDataURL()"
        patches = self.browser.script(painted, self.all(".mmfw-patches")[0])
        return self.all(".mmfw-note")[-1].text, patches

    def maps(self):
        return [image.get_attribute("src") for image in self.all(".mmfw-map img")]

    def ranking(self):
        """Answers and scores, in order."""
        rows = [row.text.split("\n") for row in self.all("li.mmfw-choice")]
        return [(text, float(score)) for text, score in rows]

    def control(self, label):
        return self.root.find_element("xpath", f'.//label[span="{label}"]/*[last()]')

    def button(self, name):
        return self.root.find_element("xpath", f'.//button[.="{name}"]')

    def click(self, element):
        """As ``element.click``, away from the heading that stays at the top of the book's pages."""
        self.browser.script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def hover(self, element):
        """Move the pointer there."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser.driver).move_to_element(element).perform()

    def press(self, *keys):
        for key in keys:
            self.browser.driver.switch_to.active_element.send_keys(key)

    def until(self, true):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        drawn_anew = [StaleElementReferenceException]
        wait = WebDriverWait(self.browser.driver, 20, ignored_exceptions=drawn_anew)
        wait.until(lambda _: true())
