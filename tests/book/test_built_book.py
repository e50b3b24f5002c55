"""The built book, where there is one: works from disk with no network, no broken link, search finds things."""

import html
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from notebooks import ROOT

HTML = ROOT / "_build" / "html"
VENDORED = (HTML / "_static" / "vendor" / "versions.json").exists()
THEME_NOTICE = "Got invalid theme mode"  # the theme's only complaint, on the first visit
PAGES = sorted(str(p.relative_to(HTML)) for folder in ("book", "chapters") for p in HTML.glob(f"{folder}/**/*.html"))
LIMIT = 3_000_000  # bytes of a page

pytestmark = pytest.mark.skipif(not (HTML / "index.html").exists(), reason="no built book; run `make book` first")


@lru_cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"""\b(?:id|name)=["']([^"']+)["']""", path.read_text(encoding="utf-8")))


def broken_links(path: Path) -> list[str]:
    """Links and pictures of a page that lead to no file, or to no place in it."""
    text = re.sub(r"<(script|style)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = []
    for link in set(re.findall(r"""<(?:a|img|link)\b[^>]*?\b(?:href|src)=["']([^"']+)["']""", text)):
        parts = urlsplit(html.unescape(link))
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if not target.exists() or (anchor and target.suffix == ".html" and anchor not in anchors(target)):
            found.append(link)
    return found


def test_there_are_pages():
    assert {"book/intro.html", "book/api.html", "book/notation.html"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_broken(page):
    assert broken_links(HTML / page) == []


@pytest.mark.parametrize("page", PAGES)
def test_page_is_small_and_free_of_warnings(page):
    text = (HTML / page).read_text(encoding="utf-8")
    assert len(text) < LIMIT
    for trace in ("Traceback (most recent call last)", "UserWarning:", "FutureWarning:", "DeprecationWarning:"):
        assert trace not in text


@pytest.mark.browser
@pytest.mark.parametrize("page", PAGES)
def test_page_works_offline_and_fits_a_phone(visit, page):
    opened, problems = visit((HTML / page).as_uri())
    if VENDORED:  # else the book links to CDNs, and said so
        assert [p for p in problems if THEME_NOTICE not in p] == []
    opened.set_viewport_size({"width": 390, "height": 844})
    assert opened.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.browser
def test_search_finds_the_notation(visit):
    page, _ = visit((HTML / "search.html").as_uri() + "?q=Tweedie+OR+notation")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li").count() > 0


@pytest.mark.browser
def test_formulas_are_typeset(visit):
    page, _ = visit((HTML / "book" / "notation.html").as_uri())
    if VENDORED:
        page.wait_for_selector("mjx-container")
        assert page.locator("mjx-container").count() > 10


@pytest.mark.browser
def test_map_filters_and_links(visit):
    page, problems = visit((HTML / "book" / "intro.html").as_uri())
    page.locator(".sv-maphead input").fill("ddpo")
    shown = page.locator(".sv-map li[data-name]:visible a")
    assert 1 <= shown.count() < 5 and "found" in page.locator(".sv-maphead output").inner_text()
    page.keyboard.press("Tab")
    shown.first.click()
    page.wait_for_load_state("load")
    assert "card-" in page.url or "/chapters/" in page.url
    assert [p for p in problems if THEME_NOTICE not in p] == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_page_follows_the_readers_scheme(visit, scheme, dark):
    page, _ = visit((HTML / "book" / "intro.html").as_uri(), color_scheme=scheme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) is dark
