"""Pages of results: whole in one file, readable by programs, and right in a browser."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from darts.drawing import to_svg
from spatialflow.config import get_cfg
from spatialflow.data.registration import ensure_metadata
from spatialflow.evaluation.samples import Samples
from spatialflow.search.space import human_genotype, topology_from_config
from spatialflow.utils import charts
from spatialflow.utils.html import Page, details, drawing, paragraph, picture, table

ROWS = [["b", "10.5 (9.0 to 11.0)"], ["a", "−2.0"], ["c", "9.25"]]


def example() -> Page:
    """A page with one of everything."""
    page = Page("Flows <of> a test", "With “quotes” & an ampersand.")
    human = human_genotype()
    svg = to_svg(human, topology_from_config(get_cfg("coco/spatialflow_r50_20e.yaml")))
    chart = charts.lines({"loss": [(0, 3.0), (10, 1.0)]}, x="iteration", y="loss")
    means = charts.intervals({"human": (1.0, 0.5, 1.5)}, x="PQ")
    page.section("Drawings", drawing(svg, alt="the human flows", caption="ten flows"))
    page.section("Charts", *(drawing(s, alt="a chart", width="fits") for s in (chart, means)))
    page.section("Nothing")
    page.section("Table", paragraph("1 < 2"), table(["name", "PQ"], ROWS, caption="Quality"))
    page.section("Picture", picture(np.full((20, 30, 3), 200, np.uint8), alt="grey"))
    page.section("Settings", details("config", "KEY: <value>\n" + "x" * 300))
    return page


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_page_is_whole() -> None:
    read = Reader(example().html())
    for attributes in read.all("img"):
        assert attributes["alt"]
        assert str(attributes["src"]).startswith("data:image/")
    assert len(read.all("img")) == 4
    assert not read.all("link")
    assert all(str(a["href"]).startswith("#") for a in read.all("a"))
    assert all("src" not in attributes for attributes in read.all("script"))
    ids = Counter(a["id"] for _, a in read.elements if "id" in a)
    assert set(ids.values()) == {1}
    assert {str(a["href"]).removeprefix("#") for a in read.all("a")} <= set(ids)
    assert list(read.all("html")) == [{"lang": "en"}]
    for text in ("Flows <of> a test", "With “quotes” & an", "1 < 2", "KEY: <value>"):
        assert text in read.text
    assert "Nothing" not in read.text


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells given, 2 expected"):
        table(["a", "b"], [["1"]], caption="")


def test_quality_of_results(scenes: str) -> None:
    images = DatasetCatalog.get(scenes)[:4]
    samples = Samples(images, ensure_metadata(scenes))
    assert samples.quality(samples.truth)["PQ"] == (100, 100, 100)
    nothing = [(torch.zeros_like(ids), []) for ids, _ in samples.truth]
    assert samples.quality(nothing)["PQ"] == (0, 0, 0)
    # A class is right where its segments are, whatever they are called.
    renamed = [
        (torch.where(ids > 0, ids + 7, 0), [{**s, "id": s["id"] + 7} for s in segments])
        for ids, segments in samples.truth
    ]
    assert samples.quality(renamed)["PQ"] == (100, 100, 100)
    things = [(ids, [s for s in segments if s["isthing"]]) for ids, segments in samples.truth]
    found = samples.quality([(_kept(ids, s), s) for ids, s in things])
    assert found["PQ_th"] == (100, 100, 100)
    assert found["PQ_st"] == (0, 0, 0)
    drawn = samples.draw({"nothing": nothing}, 2)
    assert drawn.ndim == 3


def _kept(ids: torch.Tensor, segments: list[dict[str, Any]]) -> torch.Tensor:
    kept = torch.tensor([s["id"] for s in segments], dtype=ids.dtype)
    return torch.where(torch.isin(ids, kept), ids, 0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a screen."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} on this machine (Debian: chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"] or ""
    for word in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{word}")
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Any:
    """The example, open in the browser."""
    browser.get(example().save(tmp_path / "report.html").as_uri())
    return browser


def column(browser: Any, index: int) -> list[str]:
    script = "return [...document.querySelectorAll('tbody tr')].map(r => r.cells[%d].textContent)"
    return browser.execute_script(script % index)


def test_tables_sort_by_mouse_and_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    by_name, by_number = opened.find_elements("css selector", "th button")
    by_name.click()
    assert column(opened, 0) == ["a", "b", "c"]
    by_number.send_keys(Keys.ENTER)
    assert column(opened, 1) == ["−2.0", "9.25", "10.5 (9.0 to 11.0)"]
    by_number.send_keys(Keys.ENTER)
    assert column(opened, 0) == ["b", "c", "a"]
    sorted_by = opened.find_elements("css selector", "th[aria-sort=descending]")
    assert [head.text.split()[0] for head in sorted_by] == ["PQ"]


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(opened: Any, width: int) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    assert opened.execute_script("return document.scrollingElement.scrollWidth") <= width


def test_a_wide_tables_caption_is_read_without_scrolling(browser: Any, tmp_path: Path) -> None:
    page = Page("Wide", "A table.")
    page.section("Table", table(["measured"] * 12, [["1.25"] * 12], caption="a caption " * 20))
    browser.get(page.save(tmp_path / "report.html").as_uri())
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    right = "return document.querySelector('%s').getBoundingClientRect().right"
    assert browser.execute_script(right % "table") > 360
    assert browser.execute_script(right % "caption span") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(opened: Any, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    paper = _color(opened, "body", "backgroundColor")
    assert (sum(paper) > 384) == (scheme == "light")
    for selector in ("body", ".lead", "figcaption", "a", "th button"):
        ink = _color(opened, selector, "color")
        assert _contrast(ink, paper) >= 4.5, selector


def _color(browser: Any, selector: str, name: str) -> list[int]:
    script = f"return getComputedStyle(document.querySelector('{selector}')).{name}"
    return [int(number) for number in re.findall(r"\d+", browser.execute_script(script))[:3]]


def _contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2.1's ratio of two colours."""

    def luminance(color: list[int]) -> float:
        parts = [c / 255 for c in color]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_nothing_is_fetched_and_nothing_fails(opened: Any) -> None:
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    fetched = opened.execute_script(script)
    assert all(name.startswith("data:") for name in fetched)
    assert opened.get_log("browser") == []
    broken = "return [...document.images].filter(i => !i.naturalWidth).length"
    assert opened.execute_script(broken) == 0
