"""The pages in headless Chromium; skipped where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.client import Client
from serve.settings import Settings, token_sha256
from tests.serve.conftest import TOKEN

pytestmark = pytest.mark.integration


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address; at the end, the page must have had no errors and no requests to other servers."""
    opened: list[tuple[Any, str, list[str], list[str]]] = []

    def visit(url: str, **options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        requests: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        opened.append((page, url.removesuffix("docs"), requests, errors))
        return page

    yield visit
    for page, server, requests, errors in opened:
        page.context.close()
        assert errors == []
        assert [url for url in requests if not url.startswith((server, "data:"))] == []


def test_examples_are_classified_and_explained_by_keyboard(
    serve_http: Callable[[Settings], str], open_page: Callable[..., Any], settings: Settings
) -> None:
    page = open_page(serve_http(settings))
    page.get_by_label("Examples").press_sequentially("A warm film.")  # it has the focus from the start
    page.keyboard.press("Enter")
    page.keyboard.type("Dull <b>and</b> lifeless.")
    page.keyboard.press("Control+Enter")
    cards = page.get_by_role("list", name="Predictions").get_by_role("listitem")
    cards.nth(1).wait_for()
    assert cards.count() == 2
    assert "Dull <b>and</b> lifeless." in cards.nth(1).inner_text()
    assert "positive" in cards.first.inner_text()
    assert "%" in cards.first.inner_text()
    assert "2 examples in " in page.get_by_role("status").inner_text()
    assert "first, version local" in page.locator("#model").inner_text()
    why = cards.first.get_by_role("button", name="Why?")
    for _ in range(4):  # past the buttons of the form
        page.keyboard.press("Tab")
        if why.evaluate("button => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector(".why[aria-busy=false]")
    assert len(cards.first.locator(".why").inner_text()) > 3


SENT: dict[str, tuple[Any, ...]] = {
    "tickets": (["The lamp came broken.", "When do you open?"],),
    "intents": (["I lost my card.", "Where is the report?"],),
    "quiz": (["Where is milk kept?", "What is red?"], [["a fridge", "a drawer"], ["a ripe tomato", "snow", "coal"]]),
    "sums": (["What are 3 and 4?", "What are 5 and 5?"],),
}
TYPED = {
    "tickets": "The lamp came broken.\nWhen do you open?",
    "intents": "I lost my card.\nWhere is the report?",
    "quiz": "Where is milk kept?\n- a fridge\n- a drawer\n\nWhat is red?\n- a ripe tomato\n- snow\n- coal",
    "sums": "What are 3 and 4?\nWhat are 5 and 5?",
}


@pytest.mark.parametrize("name", TYPED)
def test_the_page_speaks_of_the_task(
    serve_http: Callable[[Settings], str],
    open_page: Callable[..., Any],
    settings: Settings,
    student_of: Callable[..., Path],
    name: str,
) -> None:
    url = serve_http(settings.model_copy(update={"student": str(student_of(name))}))
    page = open_page(url)
    page.locator("#model").filter(has_text="version").wait_for()
    cards = page.get_by_role("list", name="Predictions").get_by_role("listitem")
    page.get_by_role("button", name="Try an example").click()  # the task's own
    cards.first.wait_for()
    page.get_by_label("Examples").fill(TYPED[name])
    page.get_by_role("button", name="Classify" if name in ("tickets", "intents") else "Answer").click()
    cards.nth(1).wait_for()
    with Client(url) as client:
        expected = client.predict(*SENT[name])
    for i, prediction in enumerate(expected):
        shown = cards.nth(i).inner_text()
        assert (prediction.label or "no answer that could be read") in shown
        assert ("%" in shown) == (prediction.probabilities is not None)
    assert "- " not in cards.first.locator(".example").inner_text()
    assert ("15 others" in cards.first.inner_text()) == (name == "intents")
    cards.nth(1).get_by_role("button", name="Why?").click()
    page.wait_for_selector(".why[aria-busy=false]")
    words = page.inner_text("body").lower()
    assert "sentiment" not in words
    assert "review" not in words
    assert ("support ticket" in words) == (name == "tickets")


def test_refusals_are_shown_and_a_token_is_requested(
    serve_http: Callable[[Settings], str], open_page: Callable[..., Any], settings: Settings
) -> None:
    page = open_page(serve_http(settings.model_copy(update={"token_sha256": token_sha256(TOKEN), "max_characters": 20})))
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_label("Token").press("Tab")
    page.locator("#model").filter(has_text="version").wait_for()
    page.get_by_label("Examples").fill("An example that is too long to be taken.")
    page.get_by_role("button", name="Classify").click()
    page.locator("#status").filter(has_text="the limit is 20").wait_for()
    page.get_by_label("Examples").fill("Short enough.")
    page.get_by_role("button", name="Classify").click()
    page.get_by_role("listitem").wait_for()


def test_the_documentation_needs_no_other_server(
    serve_http: Callable[[Settings], str], open_page: Callable[..., Any], settings: Settings
) -> None:
    url = serve_http(settings)
    page = open_page(f"{url}docs")
    page.get_by_role("heading", name="POST /v1/predict").wait_for()
    text = page.inner_text("main")
    for part in (f"{url}v1/predict", "A warm and funny film.", "too_many_texts", "GET /readyz", "503"):
        assert part in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_fits_and_can_be_read(
    serve_http: Callable[[Settings], str], open_page: Callable[..., Any], settings: Settings, scheme: str, width: int
) -> None:
    page = open_page(serve_http(settings), color_scheme=scheme, viewport={"width": width, "height": 800})
    page.get_by_role("button", name="Try an example").click()
    page.get_by_role("listitem").nth(2).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("h1", ".hint", "#model", "#status", ".verdict strong", ".bars", "button.main", "footer"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector  # WCAG 2.2, 1.4.3


def test_a_picture_of_the_page(
    serve_http: Callable[[Settings], str], open_page: Callable[..., Any], settings: Settings, tmp_path: Path
) -> None:
    """README's: COTD_SCREENSHOT=docs/page.png COTD_SCREENSHOT_STUDENT=FOLDER pytest tests/serve/http/test_pages.py -k picture"""
    student = os.environ.get("COTD_SCREENSHOT_STUDENT", settings.student)
    page = open_page(serve_http(settings.model_copy(update={"student": student})), viewport={"width": 860, "height": 800})
    page.get_by_role("button", name="Try an example").click()
    page.get_by_role("listitem").nth(2).wait_for()
    picture = Path(os.environ.get("COTD_SCREENSHOT", tmp_path / "page.png"))
    page.screenshot(path=picture, full_page=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


# The contrast of an element's text against the nearest opaque background behind it.
CONTRAST = """element => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (behind && channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const ground = behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)";
  const [high, low] = [light(getComputedStyle(element).color), light(ground)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}"""
