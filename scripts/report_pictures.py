"""Pictures of a report for the documentation: python scripts/report_pictures.py REPORT FOLDER

It fails if the page writes a console message or is wider than its window.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

PICTURES = {
    "report": (1280, 1080, "light", ""),
    "report-samples": (1280, 900, "light", "#samples"),
    "report-phone": (390, 844, "dark", ""),
}
"""Name -> width, height, colours, place in the page."""
COLOURS = 128
"""Colours in the palette of a file: text stays sharp, and a picture is about 100 kB."""


def main() -> None:
    page_file, folder = (Path(argument).resolve() for argument in sys.argv[1:3])
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--hide-scrollbars"]
        )
        for name in PICTURES:
            path = folder / f"{name}.png"
            take(browser, page_file, name, path)
            print(path)
        browser.close()


def take(browser: Browser, page_file: Path, name: str, path: Path) -> None:
    """Save one picture.

    Raises:
        SystemExit: if the page writes to the console, or does not fit its window.
    """
    width, height, scheme, place = PICTURES[name]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(page_file.as_uri() + place)
    found = page.evaluate("document.documentElement.scrollWidth")
    if messages or found > width:
        raise SystemExit(f"{name}: {found} pixels wide in a window of {width}; {messages}")
    page.screenshot(path=path)
    page.close()
    # The median cut would give the colours of small dots up for more greys.
    picture = Image.open(path).convert("RGB")
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
