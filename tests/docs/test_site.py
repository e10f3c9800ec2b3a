"""The site in _docs/, as `make docs` builds it, looked at with a browser."""
import functools
import json
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import sync_playwright

from conftest import NOTEBOOKS, ROOT

sys.path.insert(0, str(ROOT / "tools/docs"))
import figures  # noqa: E402
from names import page_name  # noqa: E402

SITE, SCREENSHOTS = ROOT / "_docs", ROOT / ".cache/screenshots"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
ATLAS = "experiments/score_atlas.html"


class Quiet(SimpleHTTPRequestHandler):
    "A server of files that does not talk."

    def log_message(self, *args): pass


@pytest.fixture(scope="session")
def address():
    "Where the site is served on this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    "The browser that is installed."
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found: pytest.fail("no browser: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    "Open a page, as `with visit(name) as page`; what it complains about, and what it asks other machines for, fails the test."
    @contextmanager
    def visit(name, start=None, viewport=DESKTOP, scheme="light"):
        context, wrong, start = browser.new_context(viewport=viewport, color_scheme=scheme), [], start or address
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        page.on("request", lambda request: wrong.append(f"asked for {request.url}") if not request.url.startswith((start, "data:")) else None)
        page.goto(start + name)
        yield page
        context.close()
        assert not wrong
    return visit


@functools.cache
def anchors(page):
    "The places of a page to which one can link."
    return {unquote(name) for name in re.findall(r'\bid="([^"]+)"', (SITE / page).read_text(encoding="utf-8"))}


def dead(name, link):
    "Whether a link on the page `name` leads nowhere within the site."
    target, anchor = urldefrag(urljoin(f"http://site/{name}", link))
    if not target.startswith("http://site/"): return False
    path = unquote(target.removeprefix("http://site/")).split("?")[0] or "index.html"
    if not (SITE / path).is_file(): return True
    return bool(anchor) and path.endswith(".html") and unquote(anchor) not in anchors(path)


def test_every_notebook_has_a_page():
    assert PAGES, "there is no site: make docs"
    assert {page_name(name.removeprefix("nbs/")).replace(".ipynb", ".html") for name in NOTEBOOKS} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page(name, visit):
    def each(selector, what): return page.locator(selector).evaluate_all(f"all => all.map(one => {what})")

    with visit(name) as page:
        assert page.locator("h1").count() == 1 and len(page.locator("main").inner_text()) > 300
        wrong = [f"leads nowhere: {link}" for link in sorted({*each("a[href]", "one.getAttribute('href')")}) if dead(name, link)]
        wrong += [f"a link was taken apart (a name in backticks inside it?): {text}" for text in each("main :is(p, li, td)", "one.innerText") if "](" in text]
        pictures = each("img", "[one.complete && one.naturalWidth > 0, one.alt.length > 10, one.src.slice(0, 80)]")
        wrong += [f"a picture is missing: {source}" for shown, _, source in pictures if not shown]
        wrong += ["a picture without a text: put `#| fig-alt: …` into its cell" for _, described, _ in pictures if not described]
        wrong += [f"an equation is not rendered: {text}" for text in each("main .math:not(:has(.katex)), main .katex-error", "one.textContent")]
        where = each(".page-links a", "one.href")
        if not (len(where) == 3 and all((ROOT / re.search("nbs/.*", link)[0]).is_file() for link in where)): wrong.append(f"not where the notebook is: {where}")
        page.set_viewport_size(PHONE)
        if page.evaluate("document.documentElement.scrollWidth") > PHONE["width"]: wrong.append("wider than a phone")
    assert not wrong


@pytest.mark.parametrize("start", [None, f"{SITE.as_uri()}/"], ids=["served", "opened as a file"])
def test_search_finds_el2n(visit, start):
    with visit("index.html", start) as page:
        page.keyboard.press("/")
        page.keyboard.type("EL2N")
        results = page.locator(".search-result")
        results.filter(has_text="EL2N").nth(4).wait_for()                 # the list follows the typing
        texts = results.all_inner_texts()
        assert len(texts) >= 5 and sum("EL2N" in text for text in texts) >= 5
        results.first.click()
        page.wait_for_url(lambda url: "index.html" not in url)
        assert "EL2N" in page.locator("main").inner_text()


def test_slider_changes_the_pictures(visit):
    def seen():
        return page.locator("#gallery canvas").evaluate_all("all => all.map(one => one.toDataURL())"), page.locator("#gallery figcaption").all_inner_texts()

    with visit(ATLAS) as page:
        slider = page.get_by_role("slider")
        slider.focus()
        page.keyboard.press("Home")
        easy, names = seen()
        assert len(set(easy)) == 12 and names[0].splitlines() == ["bag", "EL2N 0.000", "rank 1"]
        page.keyboard.press("End")
        hard, names = seen()
        assert not set(easy) & set(hard) and names[-1].splitlines()[2] == "rank 60,000" and float(names[-1].split()[-3]) > 1.3
        page.keyboard.press("ArrowLeft")
        assert not set(seen()[0]) & set(hard)
        assert "of 60,000" in slider.get_attribute("aria-valuetext") and "EL2N from" in page.locator("#gallery output").inner_text()


def test_equations_are_rendered(visit):
    with visit("api/scores.html") as page:
        assert page.locator("main .katex").count() >= 5
        assert page.evaluate("document.fonts.ready.then(() => [...document.fonts].some(f => f.family.startsWith('KaTeX') && f.status === 'loaded'))")


def test_arguments_have_types_and_meanings(visit):
    with visit("api/prune.html") as page:
        code = page.locator(".cell-output:has(> #keep_highest) pre").inner_text()
        assert "fraction: float,\n" in code and code.endswith("-> ndarray")
        table = page.locator(".arguments table").filter(has_text="Decides which of several equal scores").first
        rows = [[cell.strip() for cell in row.split("\t")] for row in table.inner_text().splitlines()]
        assert ["fraction", "float", "The share to keep, in (0, 1]."] in rows and rows[0] == ["argument", "type = default", "meaning"]


EXPERIMENTS = [name for name in NOTEBOOKS if name.startswith(("nbs/experiments", "nbs/benchmarks"))]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "../results" in (ROOT / name).read_text(encoding="utf-8")])
def test_figures_lead_to_their_tables(name, visit):
    drawn = [cell for cell in json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"] if figures.draws(cell)]
    for cell in drawn: cell["source"] = "".join(cell["source"])
    assert all(figures.option(cell, "tables") for cell in drawn), "put `#| tables: …` into the cells that draw from nbs/results"
    found = sum(bool(figures.tables(figures.option(cell, "tables").split(), ROOT / "nbs/results")) for cell in drawn)
    with visit(page_name(name.removeprefix("nbs/")).replace(".ipynb", ".html")) as page:
        assert page.locator(".figure-table:has(a[href$='.csv'])").count() >= found


def test_dark_and_light(visit):
    def brightness(): return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)")

    with visit("index.html", scheme="dark") as page: assert brightness() < 200
    with visit("index.html") as page:
        assert brightness() > 700
        page.locator(".quarto-color-scheme-toggle").click()
        page.wait_for_function("document.documentElement.classList.contains('quarto-dark')")
        page.goto(page.url.replace("index", "guides/quickstart"))
        assert brightness() < 200, "the choice is forgotten on the next page"


KINDS = {"home": "index.html", "guide": "guides/quickstart.html", "api": "api/prune.html", "figure": "experiments/pruning.html", "gallery": ATLAS}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_screenshots(visit, kind, scheme):
    "For people to look at: .cache/screenshots/."
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for device, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
        with visit(KINDS[kind], viewport=viewport, scheme=scheme) as page:
            if kind == "gallery": page.locator("#gallery").scroll_into_view_if_needed()
            if kind == "figure": page.locator("main img").first.scroll_into_view_if_needed()
            if kind == "api": page.locator("#keep_highest").first.scroll_into_view_if_needed()
            picture = page.screenshot(path=SCREENSHOTS / f"{kind}-{device}-{scheme}.png")
            assert len(picture) > 10_000
