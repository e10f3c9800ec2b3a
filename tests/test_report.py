"""The report in a real browser: nothing is fetched, nothing sticks out on a phone, both modes are readable."""
import shutil

import numpy as np
import pytest
import torch

from datadiet.data import load
from datadiet.report import report
from datadiet.scores import Scores

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

# how well text is readable: WCAG's contrast of two colours, and the light of one
MEASURE = """() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const of = (selector, what) => light(getComputedStyle(document.querySelector(selector))[what]);
  const contrast = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const [page, card] = [of("body", "backgroundColor"), of(".card", "backgroundColor")];
  return {overflow: document.scrollingElement.scrollWidth - innerWidth, page,
          images: document.images.length, broken: [...document.images].filter(i => !i.naturalWidth).length,
          contrasts: [contrast(of("body", "color"), page), contrast(of(".soft", "color"), page), contrast(of(".other", "color"), card),
                      contrast(of("nav a", "color"), page), contrast(of("svg text", "fill"), card)]};
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    "A report on digits, with predictions."
    data, rng = load("digits"), np.random.default_rng(0)
    scores = {name: Scores.of(data, rng.random((3, len(data))), name, hardest) for name, hardest in (("el2n", "high"), ("aum", "low"))}
    probs = torch.softmax(torch.randn(len(data), 10, generator=torch.Generator().manual_seed(0)), 1)
    path = tmp_path_factory.mktemp("report") / "report.html"
    report(scores, data, path, probs)
    path.write_text(path.read_text().replace('loading="lazy"', ""))  # so that all pictures are there to be counted
    return path


def test_report_in_a_browser(path):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width in (360, 1200):
            for mode in ("light", "dark"):
                page, fetched, said = browser.new_page(viewport=dict(width=width, height=800), color_scheme=mode), [], []
                page.on("request", lambda request: fetched.append(request.url))
                page.on("console", lambda message: said.append(message.text))
                page.goto(path.as_uri(), wait_until="load")
                found = page.evaluate(MEASURE)
                assert found["overflow"] <= 0, (width, mode)
                assert (found["broken"], found["images"]) == (0, 10 * 3 * 6 + 20)  # ten classes, three strips of six, twenty suspects
                assert min(found["contrasts"]) > 4.5, (mode, found)
                assert found["page"] > .95 if mode == "light" else found["page"] < .05
                assert [url for url in fetched if not url.startswith("data:")] == [path.as_uri()] and not said
        browser.close()
