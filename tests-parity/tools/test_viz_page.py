"""The HTML page in headless Chromium: every control, pointer, keyboard and link, and its masks against window.py."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import windows_in_javascript as javascript
from PIL import Image

from natten_mps._metal.metal.flat import bricks_of
from natten_mps._metal.problem.mask import pairs
from natten_mps._metal.viz import page
from natten_mps._metal.viz.drawing import PALETTE

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.all,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and its driver"),
    pytest.mark.xdist_group("chromium"),
]


class Page:
    """The page in a browser, as a reader sees and uses it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return str(self.find(name).text)

    def type(self, name: str, value: object) -> None:
        field = self.find(name)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value) if value != "" else Keys.DELETE)

    def choose(self, name: str, option: str) -> None:
        Select(self.find(name)).select_by_visible_text(option)

    @property
    def fragment(self) -> dict[str, str]:
        return dict(part.split("=") for part in self.driver.current_url.partition("#")[2].split("&"))

    @property
    def settings(self) -> javascript.Settings:
        """Those that the address names."""
        numbers = {name: list(map(int, self.fragment[name].split(","))) for name in page.START}
        return numbers | {name: list(map(bool, numbers[name])) for name in ("is_causal", "wrap")}

    def assert_numbers(self) -> None:
        """The numbers on the page are those of Python for the settings in the address."""
        problem = javascript.problem_of(self.settings).problem
        transposed = self.fragment.get("view") == "queries"
        patch = tuple(map(int, re.findall(r"\d+", self.text("number-rows"))))
        flat = self.text("number-bricks").endswith(", flat")
        bricks = bricks_of(problem, (1,) * (3 - problem.rank) + patch, 1, transposed, flat)
        sparsity = 1 - pairs(problem) / problem.queries**2
        assert self.text("number-tokens") == f"{problem.queries:,}"
        assert self.text("number-sparsity") == f"{100 * sparsity:.2f} %"
        assert self.text("number-bricks") == f"{bricks.executed:,}" + ", flat" * flat
        assert self.text("number-full").startswith(f"{bricks.full:,} (")
        assert float(self.text("number-ratio")) == pytest.approx(64 * bricks.executed / pairs(problem), abs=0.0051)
        ideal = float(self.text("number-ideal").removesuffix("x").replace(",", ""))
        assert ideal == pytest.approx(1 / (1 - sparsity), rel=0.006)

    def tones(self) -> set[str]:
        """The colors of the picture, by their names in the light palette."""
        address = self.driver.execute_script("return document.getElementById('picture').toDataURL()")
        return named_colors(base64.b64decode(address.partition(",")[2]))


def named_colors(png: bytes) -> set[str]:
    """Which colors of the light palette a picture has."""
    found = {color for _, color in Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24) or []}
    palette = {name: tuple(int(value[at : at + 2], 16) for at in (1, 3, 5)) for name, value in PALETTE["light"].items()}
    return {name for name, color in palette.items() if color in found}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = Path(tmp_path_factory.mktemp("page")) / "page.html"
    path.write_text(page.page())
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    try:
        yield Page(driver, path.as_uri())
    finally:
        driver.quit()


@pytest.fixture
def browser(opened: Page) -> Iterator[Page]:
    """The page, opened; afterwards: no message in the console, and nothing was asked of any host."""
    opened.open()
    yield opened
    assert opened.driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.driver.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in asked), "the log of requests is empty"
    assert [url for url in asked if not re.match(r"file:|data:|about:", url)] == []


def test_every_control(browser: Page) -> None:
    browser.assert_numbers()
    assert browser.text("said") == "Query (8, 8) attends to 25 of 256 keys: axis 0: 6-10; axis 1: 6-10."
    for name, value in (("shape-0", 20), ("kernel_size-1", 7), ("stride-1", 3), ("dilation-0", 2), ("token-1", 15)):
        browser.type(name, value)
        browser.assert_numbers()
        kind, axis = name.split("-")
        assert browser.fragment[kind].split(",")[int(axis)] == str(value)
    for name in ("is_causal-0", "is_causal-1"):
        browser.find(name).click()
        browser.assert_numbers()
    assert browser.settings["is_causal"] == [True, True]
    assert browser.text("call") == (
        "na2d(query, key, value, kernel_size=(5, 7), stride=(1, 3), dilation=(2, 1), is_causal=True)"
    )
    for name in ("is_causal-0", "wrap-0", "view-queries", "kernels"):
        browser.find(name).click()
        browser.assert_numbers()
    assert browser.settings["wrap"] == [True, False] and browser.text("token-head") == "key"
    assert {"view": "queries", "kernels": "1"}.items() <= browser.fragment.items()
    assert re.match(r"Key \(8, 15\) is seen by \d+ of 320 queries: .* Its patch of ", browser.text("said"))
    browser.choose("patch", "8 x 1 rows")
    assert browser.fragment["patch"] == "8,1" and browser.text("number-rows") == "8 x 1 keys"
    browser.assert_numbers()
    for option, name, flat in (("flat: on into the next row", "flat", True), ("in their rows", "rows", False)):
        browser.choose("bricks", option)
        assert browser.fragment["bricks"] == name
        assert browser.text("number-bricks").endswith(", flat") == flat == ("flat bricks" in browser.text("said"))
        browser.assert_numbers()
    for rank, shape in (("1", [20]), ("3", [20, 20, 20])):
        browser.choose("rank", rank)
        assert browser.settings["shape"] == shape
        browser.assert_numbers()
    for name in page.EXAMPLES:
        browser.choose("example", name)
        wanted = {key: list(values) for key, values in page.EXAMPLES[name].items()}
        assert browser.settings == wanted
        browser.assert_numbers()
    browser.choose("theme", "dark")
    ground = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(20, 22, 26)"
    browser.find("link").click()
    assert browser.text("copied")


def test_pointer_and_keyboard(browser: Page) -> None:
    canvas = browser.find("picture")
    left, top = canvas.size["width"] / 2, canvas.size["height"] / 2
    square = 22  # pixels; the picture's labels take 34 at the left and 20 at the top
    at = (round(34 + 2.5 * square - left), round(20 + 12.5 * square - top))
    ActionChains(browser.driver).move_to_element_with_offset(canvas, *at).perform()
    assert browser.text("said") == "Query (12, 2) attends to 25 of 256 keys: axis 0: 10-14; axis 1: 0-4."
    assert browser.fragment["token"] == "8,8"  # pointing chooses nothing
    ActionChains(browser.driver).move_to_element(browser.find("numbers")).perform()
    assert browser.text("said").startswith("Query (8, 8) ")
    ActionChains(browser.driver).move_to_element_with_offset(canvas, *at).click().perform()
    assert browser.fragment["token"] == "12,2" and browser.find("token-0").get_attribute("value") == "12"
    for key, token in (
        (Keys.ARROW_UP, "11,2"),
        (Keys.ARROW_RIGHT, "11,3"),
        (Keys.ARROW_DOWN, "12,3"),
        (Keys.PAGE_UP, "12,3"),
    ):
        canvas.send_keys(key)
        assert browser.fragment["token"] == token
    browser.choose("rank", "3")
    canvas.send_keys(Keys.PAGE_DOWN)
    assert browser.fragment["token"] == "13,3,3" and browser.text("said").startswith("Query (13, 3, 3) ")
    browser.choose("rank", "1")
    canvas.send_keys(Keys.ARROW_LEFT)
    assert browser.text("said").startswith("Query 12 attends to 5 of 16 keys: axis 0: 10-14.")


def test_a_link_holds_everything(browser: Page) -> None:
    fragment = (
        "#shape=12,30&kernel_size=3,5&stride=1,2&dilation=2,1&is_causal=0,1&wrap=1,0&token=3,20"
        "&view=queries&kernels=1&patch=2,4&bricks=flat"
    )
    browser.open(fragment)
    assert browser.driver.current_url == browser.address + fragment
    assert browser.find("view-queries").is_selected() and browser.find("wrap-0").is_selected()
    browser.assert_numbers()
    browser.driver.execute_script("location.hash = 'shape=9&kernel_size=3'")
    assert browser.find("rank").get_attribute("value") == "1" and browser.text("number-keys") == "3"
    for nonsense in ("#shape=a,b", "#shape=1,2,3,4", "#kernel_size=5,5,5&token=99", "#patch=9,9&shape=16,16"):
        browser.open(nonsense)
        browser.assert_numbers()


def test_a_broken_link(browser: Page) -> None:
    """There is no picture yet: pointing, clicking and keys do nothing, and correcting the setting shows it."""
    browser.open("#shape=16,16&kernel_size=5,5&stride=6,1&dilation=1,1&is_causal=0,0&wrap=0,0&token=8,8")
    assert browser.text("error") == "na2d: stride must not exceed kernel_size; axis 0 has 6 > 5"
    canvas = browser.find("picture")
    ActionChains(browser.driver).move_to_element(canvas).click().perform()
    canvas.send_keys(Keys.ARROW_UP)
    assert browser.find("token-0").get_attribute("value") == "8" and browser.text("said") == ""
    browser.type("stride-0", 1)
    assert browser.text("said").startswith("Query (8, 8) ")
    browser.assert_numbers()


@pytest.mark.parametrize(
    ("name", "value", "message", "wrong"),
    [
        ("stride-1", 6, "na2d: stride must not exceed kernel_size; axis 1 has 6 > 5", {"kernel_size-1", "stride-1"}),
        ("shape-0", "", "na2d: shape must be whole numbers; axis 0 has none", {"shape-0"}),
        (
            "dilation-0",
            4,
            "na2d: kernel_size * dilation must not exceed the axis length; axis 0 has 5 * 4 = 20 > 16",
            {"shape-0", "kernel_size-0", "dilation-0"},
        ),
    ],
)
def test_a_broken_rule(browser: Page, name: str, value: object, message: str, wrong: set[str]) -> None:
    before = browser.find(name).get_attribute("value")
    browser.type(name, value)
    assert browser.text("error") == message
    marked = browser.driver.find_elements("css selector", "[aria-invalid=true]")
    assert {each.get_attribute("id") for each in marked} == wrong
    browser.type(name, before)
    assert browser.text("error") == "" and not browser.driver.find_elements("css selector", "[aria-invalid=true]")
    browser.assert_numbers()


def test_masks_and_bricks_of_random_settings(browser: Page) -> None:
    cases = javascript.cases(21, 1000)
    found = browser.driver.execute_script(f"return {javascript.script(javascript.ANSWERS, [list(c) for c in cases])}")
    javascript.assert_equal(cases, json.loads(found))


def test_the_picture_shows_it(browser: Page) -> None:
    shot = named_colors(browser.driver.get_screenshot_as_png())
    assert shot >= {"page", "panel", "ink", "muted", "empty", "seen", "query"}
    assert browser.tones() >= {"empty", "seen", "query"} and "masked" not in browser.tones()
    browser.open(
        "#shape=24,24&kernel_size=12,16&stride=4,8&dilation=1,1&is_causal=0,0&wrap=0,0&token=12,12&kernels=1&bricks=rows"
    )
    assert browser.tones() >= {"empty", "seen", "query", "full", "ink"}
    browser.open("#shape=48&kernel_size=6&stride=1&dilation=3&is_causal=1&wrap=0&token=30&kernels=1")
    assert browser.tones() >= {"empty", "seen", "faint", "group", "query", "masked", "hatch", "ink"}
    # A phone: nothing is wider than the screen.
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        for name in page.EXAMPLES:
            browser.choose("example", name)
            assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= 360, name
        assert browser.tones() >= {"empty", "seen", "query"}
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
