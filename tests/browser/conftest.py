"""A browser, and pages in it that fail their test when something goes wrong in them."""

import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from api.dependencies import SESSION_COOKIE
from cli.serve import Service

LAN_HOST = "gpu-host.test"
"""Leads to this machine, but is no localhost: browsers treat plain http differently there."""

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    f"--host-resolver-rules=MAP {LAN_HOST} 127.0.0.1",
]
_TIMEOUT_MS = 20_000

expect.set_options(timeout=_TIMEOUT_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "the browser tests need chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(_TIMEOUT_MS)
    yield context
    context.close()


@pytest.fixture
def visitor(context: BrowserContext) -> Iterator[Page]:
    """A page of somebody who is not signed in."""
    page = context.new_page()
    problems: list[str] = []

    def note_console(message: ConsoleMessage) -> None:
        # Chromium itself reports every 4xx answer and lost connection, also those that the page handles.
        if message.type == "error" and not message.text.startswith("Failed to load resource:"):
            problems.append(message.text)

    def note_dialog(dialog: Dialog) -> None:
        problems.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", note_console)
    page.on("dialog", note_dialog)
    yield page
    assert problems == []


@pytest.fixture
def page(visitor: Page, context: BrowserContext, service: Service, session_cookie: str) -> Page:
    """A page of somebody who signed in, at the job table."""
    context.add_cookies([{"name": SESSION_COOKIE, "value": session_cookie, "url": service.url, "sameSite": "Strict"}])
    visitor.goto(f"{service.url}/dashboard/jobs")
    return visitor


@pytest.fixture(scope="session")
def session_cookie(service: Service) -> str:
    """Signs in once for all."""
    headers = {"Origin": service.url}
    response = httpx.post(f"{service.url}/dashboard/sign-in", data={"key": service.key}, headers=headers)
    return response.cookies[SESSION_COOKIE]


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/dashboard/sign-in")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
