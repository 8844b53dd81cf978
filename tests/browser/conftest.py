"""A real Chromium for the tests: what opens, what it asks the network for, and what goes wrong in it."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--no-proxy-server"]  # fmt: skip
LOCAL = re.compile(r"(file|data|blob|about):|(https?|wss?)://127\.0\.0\.1[:/]")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker("browser")


@dataclass
class Watched:
    """A tab, with what it asked for from outside and what went wrong in it."""

    page: Any
    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        """Assert that nothing left the machine, nothing was raised, and no text ran as a script."""
        assert self.external == []
        assert self.errors == []
        assert self.page.evaluate("window.hacked") is None


def _missing(reason: str) -> None:
    if os.environ.get("SPARSELENS_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and SPARSELENS_REQUIRE_BROWSER=1 asks for one.", pytrace=False)
    pytest.skip(f"{reason}.")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        _missing("no chromium, chromium-browser or google-chrome on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed, so no browser can be driven")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Watched]]:
    """A function that opens a path or an address in a fresh, watched tab."""
    contexts = []

    def open_one(address: Any, **options: Any) -> Watched:
        context = browser.new_context(viewport={"width": 1100, "height": 700}, **options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        watched = Watched(context.new_page())
        page = watched.page
        page.on("request", lambda r: None if LOCAL.match(r.url) else watched.external.append(r.url))
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on("dialog", lambda dialog: (watched.errors.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda m: watched.errors.append(m.text) if "Content Security" in m.text else None)
        page.goto(address.as_uri() if hasattr(address, "as_uri") else address, wait_until="domcontentloaded")
        return watched

    yield open_one
    for context in contexts:
        context.close()
