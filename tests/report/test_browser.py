"""The page in headless Chromium: quiet, complete, as wide as the screen, and deaf to what rows say."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from sample_report import EVIL, sample_report

from compressor.report.html import script_hash

PROBE = """
const seen = {errors: [], violations: []};
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.violatedDirective));
addEventListener("load", () => {
  const inside = (element) => element.closest(".wide, nav") !== null;
  const width = document.documentElement.clientWidth;
  const column = (table, place) => [...table.tBodies[0].rows].map((row) => row.cells[place].dataset.value);
  const table = document.querySelector("#at-models table");
  const score = table.tHead.querySelectorAll("button")[2];
  score.click();
  seen.ascending = column(table, 2);
  score.click();
  seen.descending = column(table, 2);
  seen.width = width;
  seen.scrollWidth = document.documentElement.scrollWidth;
  seen.sticking = [...document.querySelectorAll("body *")]
    .filter((one) => !inside(one) && !one.closest("svg") && one.getBoundingClientRect().right > width + 0.5)
    .map((one) => one.outerHTML.slice(0, 80));
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.plots = [...document.querySelectorAll(".plot svg")].map((drawn) => {
    const box = drawn.getBoundingClientRect();
    const texts = [...drawn.querySelectorAll("text")].filter((one) => one.getBoundingClientRect().width > 0);
    return {width: box.width, height: box.height, texts: texts.map((one) => one.textContent)};
  });
  seen.scripts = document.scripts.length;
  seen.text = document.body.innerText;
  seen.background = getComputedStyle(document.body).backgroundColor;
  parent.postMessage(btoa(encodeURIComponent(JSON.stringify(seen))), "*");
});
"""
FRAME = """<!doctype html><title>frame</title><pre id="probe"></pre>
<script>addEventListener("message", (event) => { document.getElementById("probe").textContent = event.data; });</script>
<iframe src="page.html" width="WIDTH" height="900" style="border: 0"></iframe>"""  # no window is as narrow as a phone

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Visit:
    """What the probe saw, and what Chromium wrote to its log."""

    seen: dict[str, Any]
    log: str


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium here; Debian's package is called chromium")
    return found


def probed(page: str) -> str:
    """A copy of the page that reports on itself; its policy lets that one script run beside the page's own."""
    assert page.count("script-src '") == 1
    allowed = page.replace("script-src '", f"script-src '{script_hash(PROBE)}' '")
    return allowed.replace("<title>", f"<script>{PROBE}</script>\n<title>", 1)


def visit(folder: Path, page: str, width: int, *flags: str) -> Visit:
    """The page opened at that width, in pixels."""
    (folder / "page.html").write_text(probed(page), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [
        "--window-size=1400,1000",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        *flags,
    ]
    command += ["--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">([^<]+)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return Visit(json.loads(unquote(base64.b64decode(found[1]).decode())), done.stderr)


@pytest.fixture(scope="module")
def page() -> str:
    return sample_report().to_html()


@pytest.fixture(scope="module", params=[360, 1280])
def visited(request, page: str, tmp_path_factory) -> tuple[int, Visit]:
    return request.param, visit(tmp_path_factory.mktemp("visit"), page, request.param)


def test_the_page_asks_for_nothing_and_the_console_stays_empty(visited):
    _, found = visited
    assert found.seen["errors"] == []
    assert found.seen["violations"] == []
    assert found.seen["requests"] == []
    assert "CONSOLE" not in found.log


def test_nothing_sticks_out_of_the_screen(visited):
    width, found = visited
    assert found.seen["width"] == width
    assert found.seen["scrollWidth"] <= width
    assert found.seen["sticking"] == []


def test_every_plot_is_drawn_with_its_text(visited):
    width, found = visited
    assert len(found.seen["plots"]) == 5
    for plot in found.seen["plots"]:
        assert 300 <= plot["width"] <= width
        assert plot["height"] > 100
        assert len(plot["texts"]) >= 6
    assert "teacher" in found.seen["plots"][0]["texts"]


def test_a_click_on_a_head_sorts_the_table(visited):
    _, found = visited
    sizes = [float(one) for one in found.seen["ascending"]]
    assert len(set(sizes)) == 4
    assert sizes == sorted(sizes)
    assert [float(one) for one in found.seen["descending"]] == sorted(sizes, reverse=True)


def test_a_script_in_a_row_stays_text(visited):
    _, found = visited
    assert EVIL in found.seen["text"]
    assert found.seen["scripts"] == 2, "the page's own and the probe"


def test_the_page_is_dark_where_the_reader_wants_it(page: str, tmp_path: Path):
    dark = visit(tmp_path, page, 1280, "--blink-settings=preferredColorScheme=0")
    assert dark.seen["background"] == "rgb(20, 23, 26)"
    assert dark.seen["violations"] == []


def test_the_probe_sees_what_is_wrong(page: str, tmp_path: Path):
    wrong = "<script>alert(1)</script><img src='http://127.0.0.1:9/x.png'><p style='width:5000px'>wide</p>"
    found = visit(tmp_path, page.replace("<header>", f"<header>{wrong}", 1), 360).seen
    assert {"script-src-elem", "img-src"} <= set(found["violations"])
    assert found["scrollWidth"] > 360
    assert found["sticking"]
