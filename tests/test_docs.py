"""The documentation site builds without warnings and works in a browser; the examples in docstrings run."""

import doctest
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sphinx", "furo", "myst_nb", "sphinx_copybutton")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(ROOT.glob("msae/**/*.py"))
    if ">>> " in path.read_text()
]
FLAGS = [
    "--headless",
    "--window-size=1400,1000",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STATE = """
const all = selector => [...document.querySelectorAll(selector)];
return {
  links: all("a[href]").map(link => link.href),
  pictures: document.images.length,
  broken: all("img").filter(image => !(image.complete && image.naturalWidth > 0)).map(image => image.src),
  requests: performance.getEntriesByType("resource").map(entry => entry.name),
};
"""


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of a module's docstrings run and print what they say."""
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(import_module(module), optionflags=flags).failed == 0


def documented() -> list[str]:
    """The names that have a page in the reference."""
    text = (ROOT / "docs" / "reference" / "api" / "index.rst").read_text()
    names, module = [], ""
    for line in text.splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"   ([\w.]+)$", line):
            names.append(f"{module}.{found[1]}")
    return names


def test_public_names_have_a_page() -> None:
    import msae

    assert {f"msae.{name}" for name in msae.__all__} <= {*documented()}


@pytest.mark.parametrize("name", documented())
def test_documented_names_have_an_example(name: str) -> None:
    module, _, member = name.rpartition(".")
    assert ">>> " in (getattr(import_module(module), member).__doc__ or "")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The site, built with warnings as errors."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        pytest.skip(f"the extra [docs] is not installed: {', '.join(missing)}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*command, ROOT / "docs", tmp_path / "html"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path / "html"


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site's address on a local server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a window."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if find_spec("selenium") is None or not (chromium and driver):
        pytest.skip("chromium, chromedriver or selenium is not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()


def test_site(site: Path, address: str, request: pytest.FixtureRequest) -> None:
    """One test, since the site is built for it: all pages are visited, then the sidebar and the search are used."""
    browser = request.getfixturevalue("browser")  # only then: without Chromium the site is built all the same
    pages = visit(browser, address)
    links = {(page, url) for page, state in pages.items() for url in state["links"] if url.startswith(address)}
    assert not {(page, url) for page, url in links if not alive(site, url.removeprefix(address))}, "dead links"
    assert not {url for state in pages.values() for url in state["broken"]}, "pictures that did not load"
    requests = {url for state in pages.values() for url in state["requests"]}
    assert not {url for url in requests if not url.startswith((address, "data:"))}, "requests to other hosts"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"], "errors in the console"
    assert sum(state["pictures"] for state in pages.values()) >= 5
    for part in ("uses/anomalies", "reference/commands/detect", "reference/api/msae.load", "notebooks/2_your"):
        assert any(part in page for page in pages)
    navigate(browser, address)


def visit(browser: Any, address: str) -> dict[str, dict[str, Any]]:
    """All pages but source code that links lead to from the first one, with their links, pictures and requests."""
    pages: dict[str, dict[str, Any]] = {}
    waiting = [f"{address}index.html"]
    while waiting:
        page = waiting.pop()
        browser.get(page)
        pages[page] = browser.execute_script(STATE)
        links = {urldefrag(url).url for url in pages[page]["links"] if url.startswith(address)}
        shown = {url for url in links if url.endswith(".html") and "/_modules/" not in url}
        waiting += sorted(shown - {*pages, *waiting})
    return pages


@cache
def anchors(page: Path) -> set[str]:
    """The places in a page that links can lead to."""
    return {html.unescape(name) for name in re.findall(r'\bid="([^"]+)"', page.read_text())}


def alive(site: Path, link: str) -> bool:
    """Whether a link within the site leads to a file, and to a place in it."""
    path, anchor = (unquote(part) for part in urldefrag(link))
    page = site / path
    page = page / "index.html" if page.is_dir() else page
    return page.is_file() and (not anchor or anchor in anchors(page))


def navigate(browser: Any, address: str) -> None:
    """Click through the sidebar from the first page to a use and to a command, and search for a name."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 20)
    browser.get(address)
    for link, title in (("Anomalies", "Anomalies"), ("Commands", "Commands"), ("detect", "detect")):
        found = browser.find_element(By.CSS_SELECTOR, ".sidebar-tree").find_element(By.LINK_TEXT, link)
        browser.execute_script(
            "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found
        )  # not below the window's edge
        found.click()
        wait.until(lambda _, title=title: browser.find_element(By.TAG_NAME, "h1").text.startswith(title))
    browser.find_element(By.CSS_SELECTOR, ".sidebar-search").send_keys("MultiScaleDetector\n")
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#search-results li a, ul.search li a"))
