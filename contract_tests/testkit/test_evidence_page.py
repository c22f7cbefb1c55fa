"""Tests the HTML report in a real browser: width of phone and desktop, light and dark, filters, print."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from flux_memory.testkit.evidence.document import (
    BackendEvidence,
    CapabilityEvidence,
    ClauseEvidence,
    Evidence,
    MutantEvidence,
    Outcome,
    Result,
)
from flux_memory.testkit.evidence.page import page

PHONE_PIXELS: Final = 375
DESKTOP_PIXELS: Final = 1280
MIN_CONTRAST: Final = 4.5
"""The minimum contrast of text according to WCAG."""

ARGUMENTS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# The contrast of each visible text with the colour behind it.
CONTRASTS: Final = """
const channels = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
const behind = element => {
    for (; element; element = element.parentElement) {
        const [r, g, b, a = 1] = channels(getComputedStyle(element).backgroundColor);
        if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
};
const found = {};
for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    if (!element.checkVisibility() || element.tagName === "LEGEND") continue;
    const [a, b] = [light(channels(getComputedStyle(element).color)), light(behind(element))];
    found[element.tagName + "." + element.className] = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}
return found;
"""
# Elements that reach beyond the window; tables and code may scroll.
SPILLED: Final = """
return [...document.querySelectorAll("body *")]
    .filter(element => !element.closest(".scroll, pre") && element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.tagName + "." + element.className);
"""
SHOWN: Final = "return [...document.querySelectorAll('.clause')].filter(e => e.checkVisibility()).map(e => e.id)"
GROUPS_SHOWN: Final = "return [...document.querySelectorAll('.group')].filter(e => e.checkVisibility()).length"

OUTCOMES: Final[dict[str, tuple[Outcome, Outcome]]] = {
    "FM-TXT-001": ("held", "held"),
    "FM-TXT-002": ("held", "failed"),
    "FM-ORD-001": ("unverified", "held"),
    "FM-ORD-002": ("advisory", "held"),
    "FM-ORD-003": ("not run", "not run"),
    "FM-ORD-004": ("held", "not claimed"),
    "FM-ORD-005": ("held", "thorough only"),
}


def make_full_run() -> Evidence:
    names = ("SQLite", "A backend with quite a long name")

    def result(outcome: Outcome) -> Result:
        if outcome == "not run":
            return Result(outcome)
        if outcome == "thorough only":
            return Result(outcome, reason="it takes too long for the fast profile")
        if outcome == "held":
            return Result(outcome, 0.0123)
        if outcome == "not claimed":
            return Result(outcome, reason="metadata filter, session metadata, user scope")
        reason = f"AssertionError: {outcome} <b>" + "without_a_blank_to_break_at_" * 10
        return Result(
            outcome, 1.5, reason, "await memory.get_history(session)  # -> " + "'text', " * 30, "test.py::" * 20
        )

    return Evidence(
        contract="1.0",
        pinned="1.0",
        started="2026-01-01T00:00:00+00:00",
        seconds=3.0,
        environment={"flux-memory": "1.0", "Python": "3.11"},
        seeds={"model": "42"},
        mutants=MutantEvidence(60, 61, ["TiesAtRandom"]),
        backends=[
            BackendEvidence(
                name,
                "PostgreSQL 18.1",
                "a server from somewhere, " * 3,
                3.0,
                0.002,
                [
                    CapabilityEvidence("batch", claimed=True, outcome="works"),
                    CapabilityEvidence("titles", claimed=False, outcome="works"),
                    CapabilityEvidence("cursor", claimed=False, outcome="refused"),
                ],
            )
            for name in names
        ],
        clauses=[
            ClauseEvidence(
                clause_id,
                "Text" if "TXT" in clause_id else "Order and paging",
                "1.0",
                "`limit` takes the newest messages and returns them oldest first.",
                "The model is shown the start of a long conversation instead of its end.",
                dict(zip(names, map(result, outcomes), strict=True)),
            )
            for clause_id, outcomes in OUTCOMES.items()
        ],
    )


def without_browser(reason: str) -> None:
    if os.environ.get("FLUX_MEMORY_REQUIRE_CHROMIUM") == "1":
        pytest.fail(f"FLUX_MEMORY_REQUIRE_CHROMIUM=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium. Without one a test is skipped, or fails with FLUX_MEMORY_REQUIRE_CHROMIUM=1."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        without_browser("there is no Chromium: apt-get install chromium chromium-driver")
    try:
        from selenium import webdriver  # noqa: PLC0415 - an optional dependency
    except ImportError:
        without_browser("selenium is not installed: nox -s browser")
    options = webdriver.ChromeOptions()
    options.binary_location = str(browser)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield running
    running.quit()


@pytest.fixture(scope="module")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as a file."""
    path = tmp_path_factory.mktemp("page") / "contract.html"
    path.write_text(page(make_full_run()), encoding="utf-8")
    return path


def open_page(chromium: Any, report_page: Path, width: int = DESKTOP_PIXELS, scheme: str = "light") -> None:
    """Open the page at a width, in a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE_PIXELS}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    chromium.get(report_page.as_uri())
    if pictures := os.environ.get("FLUX_MEMORY_SCREENSHOTS"):
        place = Path(pictures)
        place.mkdir(parents=True, exist_ok=True)
        shot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (place / f"report-{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE_PIXELS, DESKTOP_PIXELS])
def test_readable(chromium: Any, report_page: Path, width: int, scheme: str) -> None:
    """No element reaches beyond the window, and every text contrasts with its background."""
    open_page(chromium, report_page, width, scheme)
    assert chromium.execute_script("return innerWidth") == width
    assert chromium.execute_script(SPILLED) == []
    contrasts = chromium.execute_script(CONTRASTS)
    assert len(contrasts) > 15
    assert {name: ratio for name, ratio in contrasts.items() if ratio < MIN_CONTRAST} == {}


def test_dark_is_dark(chromium: Any, report_page: Path) -> None:
    """The page follows the system's colour scheme."""
    backgrounds = set()
    for scheme in ("light", "dark"):
        open_page(chromium, report_page, scheme=scheme)
        backgrounds.add(chromium.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == {"rgb(255, 255, 255)", "rgb(13, 17, 23)"}


@pytest.mark.parametrize("width", [PHONE_PIXELS, DESKTOP_PIXELS])
def test_filter(chromium: Any, report_page: Path, width: int) -> None:
    """A click on an outcome shows the clauses that have it on some backend; held means on all of them."""
    open_page(chromium, report_page, width)
    expected = {
        "held": ["FM-TXT-001"],
        "failed": ["FM-TXT-002"],
        "unverified": ["FM-ORD-001"],
        "advisory": ["FM-ORD-002"],
        "not-run": ["FM-ORD-003"],
        "not-claimed": ["FM-ORD-004"],
        "all": list(OUTCOMES),
    }
    for choice, clauses in expected.items():
        chromium.find_element("css selector", f"label[for=only-{choice}]").click()
        assert chromium.execute_script(SHOWN) == clauses
        assert chromium.execute_script(GROUPS_SHOWN) == (2 if choice == "all" else 1)


def test_filter_by_keyboard(chromium: Any, report_page: Path) -> None:
    """The filter works without a mouse."""
    open_page(chromium, report_page)
    chromium.execute_script("document.getElementById('only-all').focus()")
    chromium.switch_to.active_element.send_keys("\ue014")  # the right arrow
    assert chromium.execute_script(SHOWN) == ["FM-TXT-001"]


def test_nothing_is_fetched(chromium: Any, report_page: Path) -> None:
    """The page is one file: it loads nothing, runs no script, and logs nothing to the console."""
    open_page(chromium, report_page)
    assert chromium.execute_script("return performance.getEntriesByType('resource').map(each => each.name)") == []
    assert chromium.execute_script("return document.scripts.length") == 0
    assert [each for each in chromium.get_log("browser") if "favicon" not in each["message"]] == []


def test_printed(chromium: Any, report_page: Path) -> None:
    """On paper there is no filter, and the colours are light, even from a dark screen."""
    open_page(chromium, report_page, scheme="dark")
    features = [{"name": "prefers-color-scheme", "value": "light"}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert not chromium.execute_script("return document.querySelector('.filter').checkVisibility()")
    assert chromium.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    printed = chromium.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
