"""Debian's chromium, headless. A module that imports this is skipped, with the reason, where there is none."""

import shutil
from contextlib import contextmanager

import pytest

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_DRIVER = shutil.which("chromedriver")
if not (_BROWSER and _DRIVER):
    pytest.skip(
        "no chromium and chromedriver on this machine (apt-get install chromium chromium-driver): "
        "pages are not opened in a browser",
        allow_module_level=True,
    )
webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pages are not opened in a browser"
)

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--window-size=1400,1000",
)


@contextmanager
def browser(profile):
    """The browser's driver, with logs of its console and its requests; `profile` is an empty folder."""
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    try:
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()
