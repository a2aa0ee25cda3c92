"""The page in Debian's chromium, headless, on a server with an index; skipped, with the reason, without a browser."""

import json
import time

import pytest

from search_r3_mteb.encoder.encoder import SearchR3Encoder
from search_r3_mteb.indexing.index import SearchIndex
from search_r3_mteb.tasks.hopworld import HopWorld
from tests.browser import browser
from tests.serving.conftest import serving, until
from tests.serving.test_limits import never_ends

HOSTILE = (
    "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"><b id=injected>"
)
QUESTION = "Name the birthplace of Hilda Laurent."  # of nano's world


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened_browser:
        yield opened_browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes") / "rivers"
    texts = list(HopWorld(500).corpus.values())[:60]
    documents = [{"id": f"d{at}", "title": "", "text": each["text"]} for at, each in enumerate(texts)]
    documents += [{"id": HOSTILE, "title": HOSTILE, "text": HOSTILE}, {"id": "long", "title": "", "text": "sea " * 300}]
    SearchIndex.build(documents, SearchR3Encoder("nano", max_length=128, max_reasoning_tokens=16), folder)
    return folder


@pytest.fixture(scope="module")
def searched(folder):
    with serving("nano", [folder]) as server:
        yield server


def opened(driver, server, dark=False, width=1300):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(f"{server.url}/")
    until(lambda: driver.execute_script("return document.documentElement.dataset.ready === 'yes'"))
    return driver


def ask(driver, question=QUESTION):
    """Typed, and sent by Enter: no mouse."""
    box = driver.switch_to.active_element
    assert box.get_attribute("id") == "question"  # where the page begins
    box.clear()
    box.send_keys(question + "\n")
    until(lambda: text(driver, "status").startswith("Done") or text(driver, "failure"))


def text(driver, element):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", element)


def shown(driver, column):
    return driver.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} > li bdi`)].map((node) => node.textContent)", column
    )


def test_both_rankings_and_the_reasoning_are_shown_and_nothing_else_is_loaded(driver, searched, folder):
    opened(driver, searched)
    ask(driver)
    index = SearchIndex.open(folder, SearchR3Encoder("nano", max_length=128, max_reasoning_tokens=16))
    [reasoned], [direct] = (index.search([QUESTION], mode=mode, k=10) for mode in ("reason", "direct"))
    assert shown(driver, "reason") == [hit.id for hit in reasoned.hits]
    assert shown(driver, "direct") == [hit.id for hit in direct.hits]
    assert text(driver, "reasoning").startswith(reasoned.thought.text.strip())
    assert text(driver, "failure") == ""
    assert driver.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert f"{searched.url}/v1/search" in asked
    assert [url for url in asked if not url.startswith((f"{searched.url}/", "data:"))] == []


def test_what_only_one_ranking_has_is_marked_in_words(driver, searched):
    opened(driver, searched)
    ask(driver)
    direct, reason = set(shown(driver, "direct")), set(shown(driver, "reason"))
    marked = driver.execute_script(
        """return [...document.querySelectorAll('#reason > li')].filter((row) => row.querySelector('.only'))
        .map((row) => row.querySelector('bdi').textContent)"""
    )
    assert set(marked) == reason - direct
    assert marked


def test_the_reasoning_is_shown_while_it_is_written(driver, folder):
    with serving("nano", [folder], max_reasoning_tokens=800) as server:
        never_ends(server)
        opened(driver, server)
        driver.switch_to.active_element.send_keys(QUESTION + "\n")
        until(lambda: len(text(driver, "reasoning")) > 5)
        first = text(driver, "reasoning")
        until(lambda: len(text(driver, "reasoning")) > len(first))
        assert text(driver, "status") == "Searching…"
        until(lambda: shown(driver, "direct"))  # what needs no reasoning does not wait for it
        state = "return document.getElementById('reasoning').getAttribute('aria-busy')"
        assert driver.execute_script(state) == "true"
        driver.get("about:blank")
        until(lambda: not len(server.service.worker.decode))  # the page that was left costs nothing more


@pytest.mark.parametrize("width", [360, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_light_dark_narrow_wide(driver, searched, dark, width):
    opened(driver, searched, dark, width)
    ask(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    tops = driver.execute_script(
        "return ['direct', 'reason'].map((id) => document.getElementById(id).getBoundingClientRect().top)"
    )
    assert (tops[0] == tops[1]) == (width == 1300)  # side by side, or below each other
    contrast = driver.execute_script(CONTRAST)
    assert len(contrast) > 6
    assert {name: ratio for name, ratio in contrast.items() if ratio < 4.5} == {}
    light = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, light.removeprefix("rgb(").removesuffix(")").split(","))) < 200) == dark


# WCAG's contrast of every kind of text with what is behind it.
CONTRAST = """
const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
  const share = part / 255;
  return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
}).reduce((sum, share, at) => sum + share * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (color !== 'rgba(0, 0, 0, 0)') return color;
  }
  return 'rgb(255, 255, 255)';
};
const found = {};
const kinds = 'h1, h2, .note, label, input, button, .soft, #reasoning, .head, .title, .text, .only, summary';
for (const node of document.querySelectorAll(kinds)) {
  const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
  const name = node.tagName + '.' + node.className;
  found[name] = Math.min(found[name] || 99, (a + 0.05) / (b + 0.05));
}
return found;
"""


def test_every_control_has_a_name_and_every_region_is_told(driver, searched):
    opened(driver, searched)
    ask(driver)
    nameless = driver.execute_script(
        """return [...document.querySelectorAll('input, select, button')]
        .filter((node) => !(node.labels && node.labels.length) && !node.textContent.trim()).map((node) => node.id)"""
    )
    assert nameless == []
    roles = driver.execute_script("return [...document.querySelectorAll('[role], [aria-live]')].map((n) => n.id)")
    assert set(roles) >= {"form", "status", "failure", "reasoning"}
    assert driver.execute_script("return document.documentElement.lang") == "en"
    order = []
    for _ in range(2):
        from selenium.webdriver.common.keys import Keys

        driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(driver.switch_to.active_element.tag_name)
    assert order[0] == "button"


def test_texts_cannot_become_markup(driver, searched):
    opened(driver, searched)
    ask(driver, HOSTILE)
    assert HOSTILE in shown(driver, "direct")
    assert driver.execute_script("return document.querySelectorAll('#injected, img').length") == 0
    assert driver.title != "broken"
    assert driver.get_log("browser") == []


def test_this_check_can_fail(driver, searched):
    """The policy stops what a mistake of the page would let in, and the browser's log tells."""
    opened(driver, searched)
    driver.execute_script("document.getElementById('status').innerHTML = arguments[0]", HOSTILE)
    until(lambda: driver.get_log("browser"))
    assert driver.execute_script("return document.querySelectorAll('#injected').length") == 1
    time.sleep(0.05)
    assert driver.title != "broken"


def test_a_page_that_lacks_the_key_asks_for_it(driver, folder, monkeypatch):
    monkeypatch.setenv("SEARCH_R3_API_KEY", "s3cret")
    with serving("nano", [folder]) as server:
        opened(driver, server)
        assert "The API key is missing" in text(driver, "failure")
        box = driver.switch_to.active_element
        assert box.get_attribute("id") == "key"
        box.send_keys("s3cret\t")
        until(lambda: text(driver, "failure") == "")
        driver.find_element("id", "question").send_keys(QUESTION + "\n")
        until(lambda: text(driver, "status").startswith("Done"))
        assert len(shown(driver, "reason")) == 10


def test_a_server_that_has_stopped_is_said_not_to_answer(driver, folder):
    """Regression: "Failed to fetch", with dots that promised an answer."""
    with serving("nano", [folder]) as server:
        opened(driver, server)
    ask(driver)
    assert text(driver, "failure") == "The server does not answer."
    assert "…" not in text(driver, "columns")


def test_a_server_without_an_index_says_so(driver, served):
    opened(driver, served)
    assert "Start it with --index FOLDER" in text(driver, "failure")
