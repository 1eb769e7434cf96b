"""A real browser that writes down whatever a page asks for or complains of."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a window; the test is skipped where it is not installed."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        # The tests may run as root, where Chromium's own sandbox does not start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page that is open, with everything that it did."""

    def __init__(self, browser: Browser, path: Path, *, width: int, scheme: str = "light") -> None:
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.own = path.as_uri()

    @property
    def asked_for(self) -> list[str]:
        """Addresses that the page requested, except the file itself and data within it."""
        return [url for url in self.requests if url != self.own and not url.startswith("data:")]

    def cards(self) -> list[int]:
        """Sample numbers of the cards that are shown, in order."""
        found = self.page.eval_on_selector_all(
            "#grid .card", "cards => cards.map(card => Number(card.dataset.index))"
        )
        return [int(index) for index in found]

    def choose(self, control: str, value: str) -> None:
        """Choose in one of the lists above the samples."""
        self.page.select_option(f"#{control}", value)
