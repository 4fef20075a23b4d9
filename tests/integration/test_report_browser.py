"""The report in a real browser: it fits every screen, runs nothing that a sample brings along, and filters."""

from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from browser import addresses, complaints, show
from lasa.report.html import write_report
from report_run import ARABIC, SCRIPT, write_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("browser") / "run")).as_uri()


@pytest.fixture
def page(chromium: Any, report: str) -> Any:
    chromium.get(report)
    return chromium


def choose(page: Any, field: str, value: str) -> None:
    Select(page.find_element(By.CSS_SELECTOR, f'[data-field="{field}"]')).select_by_value(value)


def search(page: Any, words: str) -> list[Any]:
    page.find_element(By.ID, "search").send_keys(words)
    return rows(page)


def rows(page: Any) -> list[Any]:
    return page.find_elements(By.CSS_SELECTOR, "#rows tr")


def cells(page: Any, column: int) -> set[str]:
    return {cell.text for cell in page.find_elements(By.CSS_SELECTOR, f"#rows td:nth-child({column})")}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_reaches_over_the_edge(page: Any, width: int, theme: str) -> None:
    show(page, width, theme)
    page.execute_script("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    assert page.execute_script("return innerWidth") == width
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_theme_of_the_reader_is_followed(page: Any) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(paper)
    show(page, 800, "dark")
    assert page.execute_script(paper) != light
    ink = "return getComputedStyle(document.querySelector('.drawing text')).fill"
    dark_ink = [int(part) for part in page.execute_script(ink).removeprefix("rgb(").removesuffix(")").split(",")]
    assert min(dark_ink) > 120  # light text of a figure on dark paper


def test_a_prompt_that_is_a_script_stays_text(page: Any) -> None:
    [row] = search(page, "markup")
    assert SCRIPT in row.text
    assert page.title == "Safety report: embedded"
    assert not row.find_elements(By.CSS_SELECTOR, "script, img")
    assert complaints(page) == []


def test_filters_and_search_narrow_the_table(page: Any) -> None:
    assert len(rows(page)) == 25
    choose(page, "system", "lasa")
    choose(page, "language", "sw")
    choose(page, "outcome", "complied")
    assert cells(page, 1) == {"lasa"} and cells(page, 2) == {"Swahili"} and cells(page, 4) == {"complied"}
    choose(page, "label", "harmful")
    assert len(rows(page)) == 1
    assert "1 of 1 matching" in page.find_element(By.ID, "shown").text
    assert search(page, "no such words") == []


def test_more_answers_come_on_demand(page: Any) -> None:
    page.execute_script("document.getElementById('more').click()")
    assert len(rows(page)) == 50


def test_harmful_texts_open_on_a_click(page: Any) -> None:
    choose(page, "label", "harmful")
    choose(page, "language", "en")
    first = rows(page)[0]
    assert "open a lock" not in first.get_attribute("textContent")
    first.find_element(By.TAG_NAME, "summary").click()
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert "open a lock" in first.text


def test_arabic_runs_from_right_to_left(page: Any) -> None:
    choose(page, "label", "benign")
    choose(page, "language", "ar")
    prompt = rows(page)[0].find_element(By.CSS_SELECTOR, ".said")
    assert prompt.text == ARABIC
    assert page.execute_script("return getComputedStyle(arguments[0]).direction", prompt) == "rtl"


def test_a_cell_of_the_heat_map_tells_its_interval_when_reached(page: Any) -> None:
    cell = page.find_element(By.CSS_SELECTOR, '[data-told^="Swahili, base"]')
    page.execute_script("arguments[0].focus()", cell)
    assert "interval 48.2–74.1" in page.find_element(By.ID, "told").text


def test_a_cell_that_is_pointed_at_tells_its_interval(page: Any) -> None:
    cell = page.find_element(By.CSS_SELECTOR, '[data-told^="Thai, lasa"]')
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", cell)
    ActionChains(page).move_to_element(cell).perform()
    assert page.find_element(By.ID, "told").text.startswith("Thai, lasa: 4.0")
    assert cell.get_attribute("title") == cell.get_attribute("data-told")


def test_the_page_asks_for_nothing_from_the_network(chromium: Any, report: str) -> None:
    chromium.get(report)
    assert addresses(chromium) == [report]
