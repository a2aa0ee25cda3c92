"""The page in Debian's chromium, headless. Skipped, with the reason, on a machine without the browser or selenium."""

import json
import time

import pytest

from search_r3_mteb.report import report
from tests.browser import browser
from tests.programs import mostly_slow
from tests.report.made_diagnosis import diagnosis, write


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened_browser:
        yield opened_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory, make_runs):
    """Two models, two tasks, two seeds, two budgets, published peers, both kinds of training run, a diagnosis.

    And a model whose queries all have one nDCG@10.
    """
    root = tmp_path_factory.mktemp("runs")
    runs = make_runs(root, gains={"nano": 0.18, "mini": -0.1})
    folders = [
        runs.evaluate("a", models=("nano", "mini")),
        runs.evaluate("b", seed=1),
        runs.evaluate("c", budget=16),
        runs.evaluate("d", task="SciFact", queries=300, documents=5183, hops=False),
        flat(runs.evaluate("flat", models=("flat",), hops=False)),
        runs.training("rl", "rl"),
        runs.training("sft", "sft"),
        write(root / "diagnosis", diagnosis()),
    ]
    path = root / "report.html"
    report(folders, path, "html", runs.peers())
    return path


def flat(folder):
    for path in (folder / "queries").iterdir():
        rows = [json.loads(line) | {"ndcg_at_10": 0.5} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def opened(driver, page):
    return open_page(driver, page)


def open_page(driver, path, dark=False, width=1400):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(path.as_uri())
    wait(driver, "return document.documentElement.dataset.ready === 'yes'")
    return driver


def wait(driver, condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not driver.execute_script(condition):
        assert time.monotonic() < deadline, (condition, driver.get_log("browser"))
        time.sleep(0.05)


def draw_everything(driver):
    """Scrolls through the page so that every figure is drawn, and waits for the last."""
    driver.execute_script("for (const place of document.querySelectorAll('.plot[data-figure]')) place.scrollIntoView()")
    for index in range(driver.execute_script("return document.querySelectorAll('.plot[data-figure]').length")):
        driver.execute_script("document.querySelectorAll('.plot[data-figure]')[arguments[0]].scrollIntoView()", index)
        wait(driver, f"return !!document.querySelectorAll('.plot[data-figure]')[{index}].querySelector('svg.main-svg')")


def column(driver, table, title):
    return driver.execute_script(
        """const table = document.getElementById(arguments[0]);
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[1]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[at].dataset.sort)""",
        table,
        title,
    )


def click_header(driver, table, title):
    driver.execute_script(
        """[...document.querySelectorAll(`#${arguments[0]} th`)].find((cell) => cell.textContent === arguments[1])
        .querySelector('button').click()""",
        table,
        title,
    )


def choose(driver, text):
    driver.execute_script(
        """const box = document.getElementById('explorer-pair');
        box.value = [...box.options].find((option) => option.textContent.includes(arguments[0])).value;
        box.dispatchEvent(new Event('change'))""",
        text,
    )


def hits(driver):
    return driver.execute_script("return [...document.querySelectorAll('#hits .text')].map((node) => node.textContent)")


def count(driver):
    return driver.execute_script("return document.getElementById('count').textContent")


def type_search(driver, text):
    driver.execute_script(
        """const box = document.getElementById('search');
        box.value = arguments[0]; box.dispatchEvent(new Event('input'))""",
        text,
    )


def test_no_console_message_and_nothing_loaded_from_outside(opened, page):
    draw_everything(opened)
    assert opened.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in opened.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in requests
    assert [url for url in requests if url != page.as_uri() and not url.startswith(("data:", "blob:"))] == []


def test_the_request_log_would_show_a_load(driver, tmp_path):
    # Negative control of the test above: a page that asks for something else is caught by the same log.
    (tmp_path / "leaky.html").write_text("<img src='http://127.0.0.1:9/logo.png'>")
    driver.get_log("performance")
    driver.get((tmp_path / "leaky.html").as_uri())
    assert "127.0.0.1:9/logo.png" in json.dumps(driver.get_log("performance"))


def test_every_figure_is_drawn_with_a_description(opened):
    draw_everything(opened)
    wait(opened, "return !!document.querySelector('#difference-figure svg.main-svg')")
    titles = opened.execute_script("return [...document.querySelectorAll('figure h3')].map((node) => node.textContent)")
    for expected in (
        *("Difference for every query", "Length of the reasoning", "Share of forced rows", "Quality against cost"),
        *("Quality by hop count", "Loss", "Reward", "Quality while training", "Age of the cached", "Error of the"),
    ):
        assert any(expected in title for title in titles), expected
    unlabelled = "return [...document.querySelectorAll('.plot')].filter((n) => !n.getAttribute('aria-label')).length"
    assert opened.execute_script(unlabelled) == 0


def test_a_diagnosis_is_drawn(opened):
    draw_everything(opened)
    drawn = "return document.querySelectorAll('#diagnose-0 .plot svg.main-svg').length"
    wait(opened, f"{drawn} >= 6")
    text = opened.execute_script("return document.querySelector('#diagnose-0').textContent")
    assert "the reasoning matters and helps" in text


def test_table_sorts_both_ways_and_keeps_missing_values_last(opened):
    click_header(opened, "score-table", "nDCG@10")
    down = [float(value) for value in column(opened, "score-table", "nDCG@10") if value]  # published ones have none
    assert down == sorted(down, reverse=True)
    click_header(opened, "score-table", "nDCG@10")
    up = [float(value) for value in column(opened, "score-table", "nDCG@10") if value]
    assert up == sorted(up)
    assert up != down
    for _ in range(2):
        click_header(opened, "score-table", "ms/query")
        speeds = column(opened, "score-table", "ms/query")
        assert "" in speeds
        assert "" not in speeds[: speeds.index("")]
        assert set(speeds[speeds.index("") :]) == {""}
    state = "return [...document.querySelectorAll('#score-table th')].map((n) => n.getAttribute('aria-sort'))"
    assert sorted(opened.execute_script(state))[0] in ("ascending", "descending")
    assert opened.execute_script(state).count("none") == len(opened.execute_script(state)) - 1


def test_more_rows_can_be_shown(opened):
    before = len(column(opened, "score-table", "Task"))
    opened.execute_script("document.getElementById('all-hops').click(); document.getElementById('all-peers').click()")
    assert len(column(opened, "score-table", "Task")) > before
    assert "hopworld · 2 hops" in column(opened, "score-table", "Task")


def test_explorer_finds_a_query_and_shows_it(opened):
    choose(opened, "hopworld · nano")
    type_search(opened, "number 17?")
    assert hits(opened) == ["What is the country of the founder of the violin company number 17?"]
    assert count(opened) == "1 of 60 queries"
    opened.execute_script("document.querySelector('#hits button').click()")
    detail = opened.execute_script("return document.getElementById('detail').innerText")
    assert "founded by person 17" in detail
    assert "judged relevant" in detail
    assert detail.index("Without reasoning") < detail.index("With reasoning")
    type_search(opened, "no such thing")
    assert hits(opened) == []
    assert count(opened) == "0 of 60 queries"


def test_filter_keeps_what_reasoning_did(opened):
    choose(opened, "hopworld · nano")
    totals = {}
    for kind, sign in (("helped", "+"), ("hurt", "−"), ("unchanged", "+")):
        opened.execute_script("document.getElementById('show-' + arguments[0]).click()", kind)
        deltas = opened.execute_script(
            "return [...document.querySelectorAll('#hits .delta')].map((node) => node.firstChild.textContent)"
        )
        totals[kind] = int(count(opened).split()[0])
        assert all(delta.startswith(sign) for delta in deltas), kind
        if kind == "unchanged":
            assert set(deltas) <= {"+0.00"}
    assert totals["helped"] > totals["hurt"]
    assert sum(totals.values()) == 60
    # The other model is hurt by reasoning: the filter follows the choice of model.
    choose(opened, "mini")
    opened.execute_script("document.getElementById('show-hurt').click()")
    assert int(count(opened).split()[0]) > 30


def test_clicking_a_point_opens_its_query(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    choose(opened, "hopworld · nano")
    wait(opened, "return !!document.querySelector('#difference-figure .plot').dataset.wired")
    best = opened.execute_script(
        """const place = document.querySelector('#difference-figure .plot');
        place.scrollIntoView({ block: 'center' });
        return place.data.find((trace) => trace.customdata).customdata[0]"""
    )
    surface = opened.find_element("css selector", "#difference-figure .nsewdrag")
    left = -surface.size["width"] // 2 + 2  # the first point stands at the left edge
    ActionChains(opened).move_to_element_with_offset(surface, left + 5, 0).move_to_element_with_offset(
        surface, left, 0
    ).perform()
    wait(opened, "return !!document.querySelector('#difference-figure .hoverlayer .hovertext')")  # a click is for this
    ActionChains(opened).click().perform()
    wait(opened, f"return document.getElementById('detail').innerText.includes('Query {best}')")


def luminance(driver, selector):
    channels = driver.execute_script(
        """const canvas = document.createElement('canvas').getContext('2d');
        canvas.fillStyle = getComputedStyle(document.querySelector(arguments[0])).backgroundColor;
        canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)""",
        selector,
    )
    return sum(channels) / 3


def visible(driver, table, title):
    """Whether the column's first cell lies within the screen, and is not behind the column that stays."""
    return driver.execute_script(
        """const table = document.getElementById(arguments[0]);
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[1]);
        const row = [...table.tBodies[0].rows].find((row) => !row.hidden);
        const cell = row.cells[at].getBoundingClientRect(), lead = row.cells[0].getBoundingClientRect();
        return cell.width > 0 && cell.left >= lead.right - 1 && cell.right <= innerWidth""",
        table,
        title,
    )


def names_stay_and_ndcg_is_in_view(driver):
    assert visible(driver, "score-table", "nDCG@10")
    assert not visible(driver, "score-table", "ms/query"), "a control: that one needs scrolling"
    lead = """const cell = [...document.querySelectorAll('#score-table tbody tr:not([hidden]) td.lead')]
        .find((cell) => cell.innerText.includes('hopworld')), box = cell.getBoundingClientRect();
        return [cell.innerText.split(/\\s*\\n\\s*/), box.left]"""
    names, left = driver.execute_script(lead)
    assert names[:2] == ["hopworld", "nano"]
    assert names[2].startswith("reason")
    for table in ("score-table", "difference-table", "provenance-table"):
        driver.execute_script("document.getElementById(arguments[0]).parentElement.scrollLeft = 200", table)
    assert driver.execute_script(lead) == [names, left], "it stays while the rest scrolls"
    assert visible(driver, "score-table", "Recall@10")
    # The names that have no column here sort by buttons in the first header.
    driver.execute_script("document.querySelector('#score-table th button[data-title=Model]').click()")
    models = column(driver, "score-table", "Model")
    assert models == sorted(models)


def every_name_has_its_column(driver):
    for title in ("Model", "Mode", "nDCG@10", "Queries"):
        assert visible(driver, "score-table", title), title
    hidden = "return getComputedStyle(document.querySelector('#score-table td.lead .narrow')).display"
    assert driver.execute_script(hidden) == "none"


@pytest.mark.parametrize(
    ("dark", "width"), mostly_slow([(False, 390), (False, 1400), (True, 390), (True, 1400)], (False, 1400), (True, 390))
)
def test_light_dark_narrow_wide(driver, page, dark, width):
    open_page(driver, page, dark=dark, width=width)
    (names_stay_and_ndcg_is_in_view if width < 400 else every_name_has_its_column)(driver)
    draw_everything(driver)
    assert (luminance(driver, "body") < 60) == dark
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    text = driver.execute_script(
        "return getComputedStyle(document.querySelector('.plot[data-figure] .xtick text')).fill"
    )
    assert (sum(map(int, text.removeprefix("rgb(").removesuffix(")").split(","))) > 380) == dark
    wider = (
        "return [...document.querySelectorAll('.plot svg.main-svg')].filter((n) => n.clientWidth > innerWidth).length"
    )
    assert driver.execute_script(wider) == 0
    outside = """return [...document.querySelectorAll('.plot svg.main-svg')].flatMap((svg) => {
        const figure = svg.closest('figure').getBoundingClientRect(), box = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll('.xtitle, .ytitle, .legendtext')].map((n) => n.getBoundingClientRect());
        const bad = texts.filter((text) => text.left < box.left - 1 || text.right > box.right + 1);
        return box.bottom > figure.bottom + 1 || bad.length ? [svg.closest('figure').innerText.slice(0, 40)] : [];
    })"""
    assert driver.execute_script(outside) == [], "a drawing covers what stands below it, or a label is cut off"


def test_a_figure_left_out_leaves_its_sentence_and_no_empty_frame(opened):
    choose(opened, "flat")
    frame = "return document.querySelector('#{}-figure .plot').offsetHeight"
    assert opened.execute_script(frame.format("difference")) == 0
    assert opened.execute_script(frame.format("length")) > 200
    said = "return document.querySelector('#difference-figure').innerText"
    assert "Not drawn: nDCG@10 of all 60 queries is the same" in opened.execute_script(said)
    choose(opened, "hopworld · nano")
    assert opened.execute_script(frame.format("difference")) > 200
    assert "Not drawn" not in opened.execute_script(said)
    assert opened.get_log("browser") == []


@pytest.mark.slow
def test_ten_thousand_queries_stay_usable(driver, runs):
    path = runs.root / "large.html"
    report([runs.evaluate("large", queries=10_000, documents=2000)], path, "html")
    assert path.stat().st_size < 5_000_000
    open_page(driver, path)
    assert count(driver) == "10,000 of 10,000 queries"
    timed = """const box = document.getElementById('search'), times = [];
        for (const text of arguments[0]) {
          const start = performance.now();
          box.value = text; box.dispatchEvent(new Event('input'));
          document.getElementById('hits').offsetHeight;  // the list is laid out, not only built
          times.push(performance.now() - start);
        }
        return times"""
    driver.execute_script(timed, ["warm up"])
    times = driver.execute_script(
        timed, ["w", "what", "river company", "founded by person 9", "number 9999?", "zzz", ""]
    )
    assert sorted(times)[len(times) // 2] < 100, times
    assert max(times) < 400, times  # a busy machine may interrupt one of them
    type_search(driver, "number 9999?")
    assert len(hits(driver)) == 1


def test_texts_of_a_run_cannot_become_markup(driver, runs):
    folder = runs.evaluate("hostile", models=("<img src=x onerror=alert(1)>",), queries=12)
    file = next((folder / "queries").glob("*reason*"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["query"] = row["reasoning"] = "</script><script>document.title='broken'</script><b id=injected>"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = runs.root / "hostile.html"
    report([folder], path, "html")
    open_page(driver, path)
    draw_everything(driver)
    assert driver.execute_script("return document.querySelectorAll('#injected, img[src=x]').length") == 0
    assert driver.title != "broken"
    assert driver.get_log("browser") == []


@pytest.mark.slow
def test_broken_runs_still_open(driver, runs):
    path = runs.root / "broken.html"
    report(runs.broken(), path, "html")
    open_page(driver, path)
    draw_everything(driver)
    assert driver.get_log("browser") == []
    shown = driver.execute_script("return document.getElementById('messages').textContent")
    for expected in ("half written", "NaN", "evaluated 2 times", "missing there, not zero"):
        assert expected in shown
    assert len(column(driver, "score-table", "Task")) > 3
