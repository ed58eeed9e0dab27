"""The report in a real browser."""

from pathlib import Path

import pytest
from helpers.studies import VARIANTS, ablate, write_study

PHONE, DESKTOP = (390, 844), (1280, 800)
WIDER_THAN_PAGE = """
const page = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > page + 1 && !e.closest('.wide, svg'))
    .map(e => e.tagName + '.' + e.className);
"""
NARROW_COLUMNS = (
    """return [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width)"""
)
BOTTOM = """return document.querySelector(arguments[0]).getBoundingClientRect().bottom"""
PANELS = """return [...document.querySelectorAll('#effects figure')]
    .map(e => e.getBoundingClientRect()).map(r => [Math.round(r.left), Math.round(r.top)])"""
COLORS = """const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"""


@pytest.fixture
def page(report: Path) -> str:
    """The address of the study's report."""
    return (report / "report.html").as_uri()


def show(browser, page: str, size: tuple[int, int], scheme: str = "light") -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)


@pytest.mark.browser
def test_the_console_would_tell_of_an_error(browser, tmp_path):
    """Or the next test shows nothing."""
    (tmp_path / "bad.html").write_text('<!doctype html><img src="nowhere.png">', encoding="utf-8")
    show(browser, (tmp_path / "bad.html").as_uri(), DESKTOP)
    assert browser.get_log("browser")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_has_no_console_message_and_nothing_wider_than_it(size, scheme, page, browser):
    check_page(browser, page, size, scheme)


@pytest.mark.browser
@pytest.mark.timeout(900)
def test_so_has_the_report_of_a_study_that_was_run(browser, tiny_model, tmp_path):
    out = tmp_path / "out"
    code, text = ablate(write_study(tmp_path, tiny_model, VARIANTS), out)
    assert code == 0, text
    for size in (PHONE, DESKTOP):
        check_page(browser, (out / "report.html").as_uri(), size, "light")


def check_page(browser, page: str, size: tuple[int, int], scheme: str) -> None:
    show(browser, page, size, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.execute_script(WIDER_THAN_PAGE) == []
    widths = browser.execute_script(NARROW_COLUMNS)
    assert min(widths) >= 300  # at which their text is readable
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.browser
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_first_screen_has_an_answer_and_what_it_rests_on(size, page, browser):
    show(browser, page, size)
    for place in ("h1", "header p", "header .failed", "#answers li:first-child"):
        assert 0 <= browser.execute_script(BOTTOM, place) <= size[1], place


@pytest.mark.browser
@pytest.mark.parametrize(("size", "side_by_side"), [(PHONE, 1), (DESKTOP, 3)], ids=["phone", "desktop"])
def test_the_panels_of_effects_stand_side_by_side_on_a_desktop(size, side_by_side, page, browser):
    show(browser, page, size)
    places = browser.execute_script(PANELS)
    assert len(places) == 3
    assert len({left for left, _ in places}) == side_by_side
    assert len({top for _, top in places}) == {1: 3, 3: 1}[side_by_side]


@pytest.mark.browser
def test_light_is_dark_on_light_and_dark_light_on_dark(page, browser):
    def brightness(color: str) -> int:
        return sum(int(n) for n in color.removeprefix("rgb(").rstrip(")").split(","))

    for scheme, sign in (("light", -1), ("dark", 1)):
        show(browser, page, DESKTOP, scheme)
        text, ground = map(brightness, browser.execute_script(COLORS))
        assert sign * (text - ground) > 400
