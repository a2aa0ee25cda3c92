"""The built site: what its script finds, what comes along from the repository, and how a browser shows it."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT
from tests.docs.test_made_by_code import script

site_check, repository = script("check_site"), script("repository_files")
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"


def test_what_is_wrong_with_a_site_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="one">A</h1><a href="../b.html#two">b</a><a href="#one">up</a>')
    (tmp_path / "b.html").write_text(
        '<h1 id="two">B</h1><a href="a/">a</a><a href="https://x.y">out</a><img src="c.svg">'
    )
    (tmp_path / "c.svg").write_text("<svg/>")
    (tmp_path / "s.css").write_text("a { background: url(data:x) }")
    assert list(site_check.faults(tmp_path)) == []
    assert site_check.main([str(tmp_path)]) == 0
    (tmp_path / "b.html").write_text(
        '<script src="https://cdn.x/a.js"></script><link rel="stylesheet" href="no.css"><link rel="next" href="n.html">'
        '<a href="no.html">a</a><a href="a/index.html#no">a</a><img src="//cdn.x/i.png">'
    )
    (tmp_path / "s.css").write_text('@import "https://fonts.x/f.css"; a { src: url(https://fonts.x/f.woff2) }')
    assert [line.partition(", ")[0].split(" ", 1)[1] for line in site_check.faults(tmp_path)] == [
        "links to ../b.html#two",
        "loads https://cdn.x/a.js",
        "loads no.css",
        "loads //cdn.x/i.png",
        "links to no.html",
        "links to a/index.html#no",
        "loads https://fonts.x/f.css",
        "loads https://fonts.x/f.woff2",
    ]
    assert site_check.main([str(tmp_path)]) == 1
    assert list(site_check.faults(tmp_path / "none")) == [f"{tmp_path / 'none'} holds no pages"]


def test_what_pages_link_to_comes_along():
    found = repository.linked_files([f"docs/{page}" for page in PAGES])
    assert {"CONTRIBUTING.md", "train/PAPER.md", "results/README.md", "results/rl/LOG.md", "results/nano.json"} <= set(
        found
    )
    assert not any(path.startswith("docs/") for path in found)
    assert repository.linked_files(["docs/glossary.md"]) == []


def test_links_are_written_as_they_are_in_the_site():
    def shown(markdown, uri):
        return repository.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=uri)))

    assert (
        shown("[a](../results/rl/README.md#x) [b](how.md)", "index.md")
        == "[a](repository/results/rl/README.md#x) [b](how.md)"
    )
    assert shown("[c](../how.md)", "api/tasks.md") == "[c](../how.md)"
    nested = "repository/results/rl/README.md"
    assert (
        shown("[d](LOG.md) [e](../../docs/vllm.md) ![f](curves.png)", nested)
        == "[d](LOG.md) [e](../../../vllm.md) ![f](curves.png)"
    )
    assert (
        shown("| `a\\|b` |\n`c\\|d`\n```\n[x](../no.md)\n```", "how.md")
        == "| `a|b` |\n`c\\|d`\n```\n[x](../no.md)\n```"
    )


# ---- as a reader sees it ---------------------------------------------------------------------------------------------


def build(root, folder):
    """The site of the repository at `root`, by the Makefile's own command; returns its exit code and what it said."""
    if not MKDOCS.exists():
        pytest.skip("the site's environment is not here (make docs)")
    [arguments] = re.findall(r"\$\(DOCS\)/bin/mkdocs (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    done = subprocess.run(
        [MKDOCS, *arguments.split(), "--site-dir", folder],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The site, built strictly and served from this machine."""
    folder = tmp_path_factory.mktemp("site")
    code, said = build(ROOT, folder)
    assert code == 0, said
    assert list(site_check.faults(folder)) == []
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


BROKEN = """return [...document.querySelectorAll('td code, th code')]
    .filter(code => code.getClientRects().length > 1).map(code => code.textContent)"""
COVERED = """return [...document.querySelectorAll('.md-code__nav')].filter(nav => {
    const code = nav.nextElementSibling, top = parseFloat(getComputedStyle(code).paddingTop)
    return code.getBoundingClientRect().top + top < nav.getBoundingClientRect().bottom
}).length"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pages_fit_every_screen_in_both_schemes_and_ask_nobody_else(served, tmp_path):
    from tests.browser import browser

    with browser(tmp_path) as driver:
        driver.get("about:blank")
        driver.get_log("performance")
        for page in ("index", "extend", "results", "paper", "api/encoders", "repository/results/index"):
            for scheme in ("light", "dark"):
                for width in (390, 1400):
                    screen = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
                    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
                    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
                    driver.get(f"{served}/{page}.html")
                    wide = driver.execute_script("return document.documentElement.scrollWidth")
                    assert wide <= width, f"{page} is {wide} pixels wide"
                    assert driver.execute_script(BROKEN) == [], f"{page}: code in a table breaks inside a word"
                    if width == 390:
                        assert driver.execute_script(COVERED) == 0, f"{page}: a copy button lies on code"
                    shown = "return getComputedStyle(document.body).backgroundColor"
                    dark = sum(map(int, driver.execute_script(shown).strip("rgba()").split(",")[:3])) < 300
                    assert dark == (scheme == "dark")
        driver.get(f"{served}/index.html")
        box = driver.find_element("css selector", "input.md-search__input")
        driver.execute_script("arguments[0].focus()", box)
        box.send_keys("drift map")
        found = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.pathname)"
        for _ in range(100):
            if driver.execute_script(found):
                break
            driver.execute_async_script("setTimeout(arguments[0], 100)")
        assert any(path.endswith(("how.html", "glossary.html")) for path in driver.execute_script(found))
        asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
        assert {url for url in urls if not url.startswith((served, "data:", "blob:", "chrome:", "about:"))} == set()
        assert any(url.startswith(served) for url in urls)


def test_the_site_is_built_by_the_gate_with_the_extra_that_is_declared():
    assert "\nmake test-docs " in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\ntest-docs: docs install" in (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, DOCS / "requirements.py"], capture_output=True, text=True, check=True, timeout=60
    )
    names = [line.partition(">=")[0] for line in shown.stdout.splitlines()]
    assert names == ["mkdocs", "mkdocs-material", "mkdocstrings[python]", "ruff"]


@pytest.mark.slow
def test_a_page_that_leads_nowhere_ends_the_build(tmp_path):
    root = tmp_path / "copy"
    root.mkdir()
    shutil.copytree(DOCS, root / "docs")
    shutil.copy(ROOT / "mkdocs.yml", root)
    pages = (page.name for page in ROOT.glob("*.md"))  # one that the site takes along may link to another
    for name in (*pages, "examples", "results", "search_r3_mteb", "train"):
        (root / name).symlink_to(ROOT / name)
    (root / "docs" / "glossary.md").write_text("# Glossary\n\n[a](none.md) [b](how.md#none) [c](../results/none.md)\n")
    code, said = build(root, tmp_path / "site")
    assert code != 0
    assert said.count("WARNING") == 3
    for part in ("'none.md'", "'#none'", "results/none.md"):
        assert part in said
