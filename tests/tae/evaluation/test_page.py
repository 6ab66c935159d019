"""The pages of evaluations and sweeps, opened from disk in headless Chromium: they play, step, sort and wipe."""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tae.evaluation.page import SHOWN_CLIPS
from tae.evaluation.sweep import write_comparison
from tae.evaluation.sweep_page import short_labels
from tests.tae.evaluation.written_run import COLOURS, EVIL, FRAMES, grey, write_run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a failed one."""
    folder = tmp_path_factory.mktemp("sweep")
    for run in (0, 1):
        write_run(folder / str(run), run, loss={"opl": {"weight": run}}, seed=0)
    (folder / "2").mkdir()
    for run, error in enumerate([None, None, "the loss is not finite"]):
        record = {"job": run, "overrides": {"loss.opl.weight": str(run)}, "error": error}
        (folder / str(run) / "run.json").write_text(json.dumps(record))
    write_comparison(folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as driving:
        yield driving


class Page:
    """A page as a reader meets it."""

    def __init__(self, browser: webdriver.Chrome, folder: Path) -> None:
        self.browser = browser
        browser.get((folder / "index.html").as_uri())
        self.until(lambda: self.script("return document.querySelector('video').readyState") >= 2)
        self.at(0)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.browser.execute_script(text, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, 60, poll_frequency=0.05).until(lambda _: condition())

    def element(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def press(self, *keys: str) -> None:
        self.element("body").send_keys(*keys)

    def frame(self) -> int:
        return int(self.element("#viewer").get_attribute("data-frame"))

    def at(self, frame: int) -> None:
        """Wait for a frame to be shown, and see that the picture is that frame's."""
        self.until(lambda: self.frame() == frame and not self.script("return document.querySelector('video').seeking"))
        # H.264 keeps a flat grey to a level or two; frames are 25 apart.
        self.until(lambda: abs(self.colour(".pictures canvas", 0.5)[0] - grey(frame)) < 6)

    def colour(self, selector: str, across: float) -> np.ndarray:
        """The colour on the screen, so and so far across an element."""
        picture = Image.open(io.BytesIO(self.element(selector).screenshot_as_png)).convert("RGB")
        return np.array(picture.getpixel((int(across * (picture.width - 1)), picture.height // 2)), dtype=int)


@pytest.fixture
def page(browser: webdriver.Chrome, evaluation: Path) -> Iterator[Page]:
    opened = Page(browser, evaluation)
    yield opened
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def near(colour: np.ndarray, expected: Any) -> bool:
    """The colours here differ by 25 and more; saturated ones lose up to 8 levels to yuv420p in two generations of H.264."""
    return bool(np.abs(colour - np.array(expected)).max() < 12)


def test_it_needs_no_network(evaluation: Path, sweep: Path) -> None:
    for folder in (evaluation, sweep):
        addresses = set(re.findall(r"https?://[^\s\"'`]+", (folder / "index.html").read_text()))
        assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG's elements, which nothing fetches"


def test_what_moves_is_drawn_over_time_and_leads_to_the_frame(page: Page) -> None:
    """One section follows the clip of the other."""
    assert page.texts("#motion h3") == ["PSNR of motion over time (dB)", "Flicker over time (levels of 255)"]
    assert "trilinear baseline" in page.element("#motion .legend").text
    page.script("const x = arguments[0]; x.scrollIntoView({block: 'center'})", page.element("#motion svg"))
    curve = page.element("#motion svg")
    webdriver.ActionChains(page.browser).move_to_element_with_offset(
        curve, curve.size["width"] // 2 - 14, 0
    ).click().perform()
    page.at(FRAMES - 1)
    page.press("n")
    page.until(lambda: "v_b, the clip above" in page.element("#motion p").text)


def test_the_latents_report_is_a_table_and_three_charts(page: Page) -> None:
    lines = {row.split("\n")[0] for row in page.texts("#latents-report tbody tr")}
    assert any(line.startswith("equivariance error, flip 0.25") for line in lines)
    assert len(page.browser.find_elements(By.CSS_SELECTOR, "#latents-report")) == 1
    headings = page.texts("section h3")
    assert {"Spectrum in space (% of what is not constant)", "PSNR with noise on the latents (dB)"} <= set(headings)


def test_a_caption_names_the_metric_that_was_chosen(page: Page) -> None:
    caption = ".pictures figure:nth-child(2) figcaption"
    assert "PSNR (dB) 20.00" in page.element(caption).text
    page.script(
        "const x = arguments[0]; x.value = 1; x.dispatchEvent(new Event('change'))", page.element("#caption-metric")
    )
    assert "SSIM 0.8000" in page.element(caption).text


def test_a_sweep_shows_rates_above_linear_codecs(browser: webdriver.Chrome, sweep: Path) -> None:
    page = Page(browser, sweep)
    titles = page.script("return [...document.querySelectorAll('#rates circle title')].map((x) => x.textContent)")
    assert titles[0] == "trilinear: 19.00"
    assert [float(title.split(": ")[1]) for title in titles[1:]] == [21.0, 22.0]
    assert {"trilinear", "principal components"} <= set(page.texts("#rates .legend span"))
    rates = page.script("return JSON.parse(document.getElementById('data').textContent).rates")
    assert [model["rate"] for model in rates["models"]] == [1 / 96, 2 / 96]
    assert rates["floors"][0]["points"] == [[1 / 512, 19.0]], "three numbers for 8x8x8 values of three colours"
    assert len(page.texts("#latents-report tbody tr")) > 8


def test_names_from_outside_stay_text(page: Page) -> None:
    assert page.script("return window.injected") is None
    assert EVIL in page.script("return [...document.querySelectorAll('#clips button.link')].map((x) => x.textContent)")
    assert "<b>cannot</b>" in page.element("ul").text


def test_it_tells_the_numbers(page: Page) -> None:
    rows = page.texts("#summary tbody tr")
    assert rows[0].startswith("PSNR (dB) ↑")
    assert {"21.00", "19.00", "+2.00"} <= set(rows[0].split())
    assert "trilinear baseline" in page.element("#viewer .legend").text


@pytest.mark.parametrize("width", [390, 1280])
def test_every_number_of_the_summary_is_on_the_screen(width: int, browser: webdriver.Chrome, sweep: Path) -> None:
    """Long names of runs took the whole width of a telephone, and cut tables off on a desktop."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened = Page(browser, sweep)
        names = "document.querySelectorAll('#summary th a')"
        renamed = names + ".forEach((x) => { x.textContent = 'ckpt=' + 'long-'.repeat(40) })"
        opened.script(renamed)
        edges = "return [...document.querySelectorAll('#summary .value')].map((x) => x.getBoundingClientRect().right)"
        right = opened.script(edges)
        assert len(right) == 2 * 3 + 2, "two runs have three metrics each, the baseline has two"
        assert max(right) <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_steps(page: Page) -> None:
    page.element("#forward").click()
    page.at(1)
    page.press(Keys.ARROW_RIGHT)
    page.at(2)
    page.press(Keys.END)
    page.at(FRAMES - 1)
    page.press(Keys.ARROW_LEFT)
    page.at(FRAMES - 2)
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.at(0)
    page.element("#frame").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.at(3)
    assert page.element("#readout").text.startswith("frame 4 / 8")


def test_it_plays_and_stops(page: Page) -> None:
    page.press(" ")
    page.until(lambda: page.frame() >= 3)
    assert page.element("#play").text == "Pause"
    page.press(" ")
    page.until(lambda: page.element("#play").text == "Play")
    page.at(page.frame())
    page.press(" ")
    page.until(lambda: page.element("#play").text == "Pause")
    page.press("N")
    page.at(0)
    assert page.element("#play").text == "Play"


def test_the_pictures_are_of_one_frame(page: Page) -> None:
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.at(2)
    assert near(page.colour(".pictures figure:nth-child(2) canvas", 0.5), COLOURS[0])
    page.script("const x = arguments[0]; x.value = 1; x.dispatchEvent(new Event('input'))", page.element("#gain"))
    assert near(page.colour("#difference", 0.5), [abs(c - grey(2)) for c in COLOURS[0]])


def test_it_wipes(page: Page) -> None:
    assert near(page.colour("#wipe", 0.25), [grey(0)] * 3)
    assert near(page.colour("#wipe", 0.75), COLOURS[0])
    page.press(*"]" * 8)
    assert near(page.colour("#wipe", 0.75), [grey(0)] * 3)
    page.press(*"[" * 16)
    assert near(page.colour("#wipe", 0.25), COLOURS[0])
    page.element("#wipe-position").send_keys(Keys.END)
    assert near(page.colour("#wipe", 0.75), [grey(0)] * 3)
    page.press("x")
    assert near(page.colour("#wipe", 0.25), COLOURS[0])


def test_it_sorts_and_filters(page: Page) -> None:
    column = page.element("#clips thead th:nth-child(3)")
    assert column.get_attribute("aria-sort") is None
    for direction, order in (("descending", ["22.00", "21.00", "20.00"]), ("ascending", ["20.00", "21.00", "22.00"])):
        column.find_element(By.TAG_NAME, "button").click()
        assert column.get_attribute("aria-sort") == direction
        assert page.texts("#clips tbody td:nth-child(3)") == order
    page.element("#filter").send_keys("V_B")
    assert page.texts("#clips tbody td:first-child") == ["v_b"]


def test_a_clip_is_opened_from_the_table(page: Page) -> None:
    page.script("arguments[0].click()", page.browser.find_elements(By.CSS_SELECTOR, "#clips button.link")[1])
    page.until(lambda: page.element("#clip").get_attribute("value") == "1")
    page.at(0)
    assert page.script("return document.querySelector('tr.shown').dataset.key") == "v_b"
    page.press("n")
    page.until(lambda: page.element("#clip").get_attribute("value") == "2")


def test_the_outlier_is_shown_in_its_latent_frame(page: Page) -> None:
    page.until(lambda: "0.00%" in page.element(".latents").text)
    page.press(Keys.END)
    page.until(lambda: f"{100 / 64:.2f}%" in page.element(".latents").text)
    assert "latent frame 2 of 2" in page.element(".latents").text
    picture = np.array(Image.open(io.BytesIO(page.element("#outliers").screenshot_as_png)).convert("RGB"))
    row, column = (
        int((position + 0.5) / 8 * length) for position, length in zip((2, 5), picture.shape[:2], strict=True)
    )
    assert near(picture[row, column].astype(int), (0, 229, 255))


def test_a_click_on_the_curve_goes_to_the_frame(page: Page) -> None:
    curve = page.element("#viewer .chart svg")
    webdriver.ActionChains(page.browser).move_to_element_with_offset(
        curve, curve.size["width"] // 2 - 14, 0
    ).click().perform()
    page.at(FRAMES - 1)


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("kind", ["evaluation", "sweep"])
def test_nothing_is_wider_than_the_screen(
    width: int, kind: str, browser: webdriver.Chrome, request: pytest.FixtureRequest
) -> None:
    page = Page(browser, request.getfixturevalue(kind))
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.script("document.querySelectorAll('.facts dd').forEach((x) => { x.textContent = '/a/path'.repeat(30) })")
    try:
        assert page.script("return document.documentElement.scrollWidth") <= width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_has_a_dark_side(page: Page) -> None:
    brightness = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        colour = page.script("return getComputedStyle(document.body).backgroundColor")
        brightness.append(int(re.findall(r"\d+", colour)[0]))
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert brightness[0] > 200
    assert brightness[1] < 50


def test_labels_are_what_differs_in_paths() -> None:
    assert short_labels(["ckpt=/a/b0/c/last.ckpt", "ckpt=/a/b1/c/last.ckpt"]) == ["b0", "b1"]
    assert short_labels(["opl=0", "opl=10"]) == ["opl=0", "opl=10"]
    assert short_labels(["x=/a/b", "x=/a/b/c"]) == ["b", "b/c"]
    assert short_labels(["x=/a/b"] * 2) == ["b"] * 2
    assert short_labels([]) == []


def test_every_control_has_a_name(page: Page) -> None:
    nameless = page.script(
        "return [...document.querySelectorAll('button, select, input')].filter((x) => "
        "!x.textContent.trim() && !x.getAttribute('aria-label') && !x.closest('label')).map((x) => x.outerHTML)"
    )
    assert nameless == []


def test_a_sweep_compares_its_runs(browser: webdriver.Chrome, sweep: Path) -> None:
    page = Page(browser, sweep)
    assert page.texts("#settings tbody tr") == ["loss.opl.weight 0 1 2"], "nothing else differs but each run's folder"
    summary = page.texts("#summary tbody tr")
    assert [re.split(r"\s", row)[0] for row in summary[:3]] == [f"loss.opl.weight={i}" for i in (0, 1, 2)]
    assert "the loss is not finite" in summary[2]
    labels = page.texts(".pictures figcaption")
    assert labels[0] == "original"
    assert near(page.colour(".pictures figure:nth-child(2) canvas", 0.5), COLOURS[0])
    assert near(page.colour(".pictures figure:nth-child(3) canvas", 0.5), COLOURS[1])
    page.script("arguments[0].value = 1; arguments[0].dispatchEvent(new Event('change'))", page.element("#left"))
    page.script("arguments[0].value = 2; arguments[0].dispatchEvent(new Event('change'))", page.element("#right"))
    assert near(page.colour("#wipe", 0.25), COLOURS[0])
    assert near(page.colour("#wipe", 0.75), COLOURS[1])
    assert page.texts("#clips tbody tr")[-1].split() == ["v_c", "8", "22.00", "24.00", "\N{EN DASH}", "19.00", "2.00"]
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_the_index_of_the_clips_tells_each_frame(evaluation: Path) -> None:
    entries = json.loads((evaluation / SHOWN_CLIPS).read_text())
    assert [entry["key"] for entry in entries] == [EVIL, "v_b", "v_c"]
    error = np.mean([(grey(3) - colour) ** 2 for colour in COLOURS[0]])
    assert entries[0]["psnr"][3] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    assert entries[0]["trilinear_psnr"][3] > 20
    assert entries[0]["latents"]["outliers"] == [0.0, pytest.approx(1 / 64)]
    assert (evaluation / entries[0]["video"]).is_file()
