"""Pictures of a report for the documentation: python scripts/report_pictures.py REPORT FOLDER"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
PICTURES = {
    "report": (1180, 1180, "light", ""),
    "report-samples": (1180, 900, "light", "#samples"),
    "report-phone": (390, 844, "dark", "#samples"),
}
"""Name -> width, height, colours, place in the page."""


def main() -> None:
    page_file, folder = (Path(argument).resolve() for argument in sys.argv[1:3])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, (width, height, scheme, place) in PICTURES.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(page_file.as_uri() + place)
            path = folder / f"{name}.png"
            page.screenshot(path=path)
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
