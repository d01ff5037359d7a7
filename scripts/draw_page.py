"""A screenshot of the page of `viz`, for README.md and docs/viz.md: docs/viz.png. Needs Chromium and its driver.

python scripts/draw_page.py
"""

import shutil
import tempfile
from pathlib import Path

from selenium import webdriver

from natten_mps._metal.viz.page import page

TARGET = Path(__file__).parents[1] / "docs" / "viz.png"
SIZE = {"width": 1160, "height": 955, "deviceScaleFactor": 1, "mobile": False}
SHOWN = "#shape=24,32&kernel_size=9,19&stride=2,2&dilation=1,1&is_causal=0,0&wrap=0,0&token=12,17&kernels=1&bricks=rows"


def main() -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page())
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
            driver.get(path.as_uri() + SHOWN)
            driver.execute_script("document.documentElement.style.overflow = 'hidden'")  # no scroll bar
            driver.save_screenshot(str(TARGET))
        finally:
            driver.quit()
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
