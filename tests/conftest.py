"""Chapters become notebooks for nbmake before collection; Chromium for the browser tests, or a reason to skip."""

import os
import shutil

import pytest
from notebooks import write_notebooks

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_configure(config):
    os.environ.setdefault("SURVEYLIB_SCALE", "toy")
    os.environ["SURVEYLIB_PROVE_CHECKS"] = "1"  # the exercises of the chapters must be able to fail
    if not hasattr(config, "workerinput"):  # once, in the process that starts the others
        write_notebooks()


def chromium_path() -> str | None:
    """An installed Chromium or Chrome: $SURVEYLIB_CHROMIUM, or the first found on the path."""
    return os.environ.get("SURVEYLIB_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium. Skips, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium_path()
    if path is None:
        pytest.skip(f"no Chromium found (looked for {', '.join(BROWSERS)}; set SURVEYLIB_CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Open an address offline. Returns (page, problems): requests that left the disk, errors in the console."""
    contexts = []

    def open_page(address: str, **context):
        context = browser.new_context(offline=True, **{"viewport": {"width": 1366, "height": 900}, **context})
        context.set_default_timeout(60_000)
        contexts.append(context)
        page, problems = context.new_page(), []
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url))
        page.on("requestfailed", lambda r: problems.append(f"failed: {r.url}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None)
        page.goto(address)
        return page, problems

    yield open_page
    for context in contexts:
        context.close()
