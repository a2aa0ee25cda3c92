"""Hostile texts in the report's page, in a real browser: they stay text, nothing runs, nothing is loaded."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tests.attack.fuzzing import text
from tests.attack.trials import Case, Outcome, failure

_HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "<svg onload=window.pwned=1>",
    "<!--<script>",
    "javascript:window.pwned=1",
    '"><b id=injected>',
    "'><b id=injected>",
    "</title><b id=injected>",
    "</style><b id=injected>",
    "</textarea><b id=injected>",
    "]]><b id=injected>",
    "{{ 7 * 7 }}",
    "${window.pwned=1}",
    "&lt;b id=injected&gt;",
    "<iframe src=//127.0.0.1:9/>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    "<a href='javascript:window.pwned=1' id=injected>x</a>",
    "\u2028window.pwned=1\u2028",
    "<base href=//127.0.0.1:9/>",
    "__proto__",
    "constructor",
    "<math><b id=injected>",
    "<b>bold</b><br><a href='//127.0.0.1:9/'>x</a>",
)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
)
_INSIDE = ("data:", "blob:", "chrome:", "chrome-untrusted:", "chrome-extension:")
"""Neither from a network nor the page's: the last three are of the browser's own first tab."""
_SHOW = """
for (const box of document.querySelectorAll('select')) for (const option of box.options) {
  box.value = option.value; box.dispatchEvent(new Event('change', {bubbles: true})); }
for (const place of document.querySelectorAll('.plot')) place.scrollIntoView();
for (const button of [...document.querySelectorAll('#hits button')].slice(0, 12)) button.click();
"""


def hostile(rng: random.Random) -> str:
    """Markup, code, and pieces that somebody once fell over."""
    parts = [
        rng.choice(_HOSTILE) if rng.random() < 0.7 else text(rng, surrogates=False)[:60]
        for _ in range(rng.randrange(1, 4))
    ]
    return "".join(parts)


class HostilePage:
    """A run whose texts, ids and names are hostile, as a page."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.name, self.counts = "browser/report page", counts
        self._driver: Any = None

    def absent(self) -> str:
        if not ((shutil.which("chromium") or shutil.which("google-chrome")) and shutil.which("chromedriver")):
            return "no chromium and chromedriver on this machine"
        try:
            import selenium  # noqa: F401
        except ImportError:
            return "selenium is not installed"
        return ""

    def prepare(self, folder: Path) -> None:
        """The browser is started by each process that needs it."""
        self._profile = folder

    def draw(self, rng: random.Random) -> Case:
        fields = ("query", "reasoning", "query_id", "text", "document", "model", "task", "command", "fingerprint")
        return {name: hostile(rng) for name in fields}

    def attempt(self, case: Case, place: Path) -> Outcome:
        from search_r3_mteb.report import report
        from tests.report.conftest import FakeRuns

        folder = FakeRuns(place).evaluate("run", queries=4, documents=12)
        _poison(folder, case)
        page = place / "page.html"
        report([folder], page, "html")
        return self._opened(page)

    def _opened(self, page: Path) -> Outcome:
        driver = self._started()
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(page.as_uri())
        title = driver.title
        driver.execute_script(_SHOW)
        if driver.execute_script("return window.pwned === undefined && ({}).polluted === undefined") is not True:
            return failure("code ran", page.name)
        if driver.execute_script("return document.querySelectorAll('#injected, iframe, base, img[src=x]').length"):
            return failure("markup", "a text became an element")
        if driver.title != title or driver.execute_script("return document.documentElement.dataset.ready") != "yes":
            return failure("broken page", str(driver.get_log("browser")))
        if said := driver.get_log("browser"):
            return failure("console", str(said))
        messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        outside = [url for url in urls if url != page.as_uri() and not url.startswith(_INSIDE)]
        return failure("loaded from outside", str(outside)) if outside else Outcome("stayed text")

    def _started(self) -> Any:
        if self._driver is None:
            import tempfile

            from selenium import webdriver
            from selenium.webdriver.chrome.service import Service

            options = webdriver.ChromeOptions()
            options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
            profile = tempfile.mkdtemp(dir=self._profile)
            for flag in (*_FLAGS, f"--user-data-dir={profile}"):
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
            self._driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
            self._driver.set_script_timeout(60)
        return self._driver

    def close(self) -> None:
        """End the browser, which outlives its process otherwise."""
        if self._driver is not None:
            self._driver.quit()
            self._driver = None


def _poison(folder: Path, case: Case) -> None:
    """Put the hostile texts into every place of the run that holds a text."""
    summary = folder / "summary.json"
    rows = json.loads(summary.read_text())
    for row in rows:
        row |= {
            "model": case["model"],
            "command": case["command"],
            "fingerprint": case["fingerprint"],
            "task": case["task"],
        }
    summary.write_text(json.dumps(rows))
    for path in (folder / "queries").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records):
            record["query"], record["query_id"] = f"{case['query']}{number}", f"{case['query_id']}{number}"
            if record.get("reasoning") is not None:
                record["reasoning"] = case["reasoning"]
            for document in (*record.get("top", ()), *record.get("judged", ())):
                document["text"], document["id"] = case["text"], f"{case['document']}{document.get('id')}"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
