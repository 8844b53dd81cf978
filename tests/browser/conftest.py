"""A real Chromium for the tests: what opens, what it asks the network for, and what goes wrong in it."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import running_lab

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--no-proxy-server"]  # fmt: skip
PICTURES = Path(__file__).resolve().parents[2] / "out" / "pictures"
LOCAL = re.compile(r"(file|data|blob|about):|(https?|wss?)://127\.0\.0\.1[:/]")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker("browser")


def _is_bad(message: Any) -> bool:
    """Whether a line of the console is an error, or a breach of the page's policy. JupyterLab's own do not count."""
    ours = not message.page.url.startswith("http") if message.page else True
    return "Content Security" in message.text or (message.type == "error" and ours)


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


@pytest.fixture(scope="session")
def missing() -> Callable[[str], None]:
    """A function that skips with a reason, or fails where everything must be there."""
    return _missing


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


@dataclass
class Served:
    """A JupyterLab: its address, and the folder whose notebooks it shows."""

    address: str
    folder: Path


@pytest.fixture(scope="session")
def serve(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One JupyterLab for all tests."""
    folder = tmp_path_factory.mktemp("notebooks")
    with running_lab(tmp_path_factory.mktemp("lab"), folder) as address:
        yield Served(address, folder)


@pytest.fixture
def picture() -> Callable[..., None]:
    """A function that keeps a picture of a page under `out/pictures`, to look at when a test has failed."""

    def keep(page: Any, name: str, **options: Any) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}.png", **options)

    return keep


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
        page.on("console", lambda m: watched.errors.append(m.text) if _is_bad(m) else None)
        page.goto(address.as_uri() if hasattr(address, "as_uri") else address, wait_until="domcontentloaded")
        return watched

    yield open_one
    for context in contexts:
        context.close()
