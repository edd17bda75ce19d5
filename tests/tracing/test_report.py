"""Reports: what they say of a PASS, a FAIL and an INCONCLUSIVE trace, that no text of a tracee gets out of its place, and
that a browser shows the page as it is meant.
"""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tracing.traces import Lines, inet
from tracing import judge, page, report
from tracing.errors import TraceError
from tracing.judge import BLIND_SPOTS, STATUS
from tracing.overview import overview
from tracing.policy import load_all

core = pytest.mark.core
EVIL = "/srv/<script>alert(1)</script>\x1b[31m\u202e\"'&"
EVIL_ARGUMENT = '"/srv/<script>alert(1)</script>\\33[31m\\342\\200\\256\\"\'&"'
EVIL_ANNOTATION = "</srv/\\74script\\76alert(1)\\74/script\\76\\33[31m\\342\\200\\256\"'&>"
COLOURS = {"PASS": "1a7f43", "FAIL": "c02626", "INCONCLUSIVE": "9a6200", page.NOT_JUDGED: "4a5560"}
DARK = {"PASS": "208049", "FAIL": "cf3d3d", "INCONCLUSIVE": "96680f", page.NOT_JUDGED: "5b6772"}
N = 1500  # requests of the large trace


def served(n: int = 3) -> Lines:
    """A server that behaves, but for the names of its files."""
    lines = Lines(step_ns=40_000).start().phase("startup")
    lines.call(f"openat(AT_FDCWD</srv>, {EVIL_ARGUMENT}, O_RDONLY) = 6{EVIL_ANNOTATION}")
    lines.call(f"openat(AT_FDCWD</srv>, {EVIL_ARGUMENT}, O_WRONLY|O_CREAT, 0600) = -1 EACCES (Permission denied)")
    lines.call(f"close(6{EVIL_ANNOTATION}) = 0")
    lines.phase("load").listen().wait(2).phase("warmup").wait(3).phase("serving").accept()
    for i in range(n):
        lines.exchange().wait(0.002 * (i % 100 == 0))
    return lines


def leak(lines: Lines) -> Lines:
    return (lines.call("socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 7<TCP:[77]>")
            .call(f"connect(7<TCP:[77]>, {inet('203.0.113.7', 443)}, 16) = -1 ECONNREFUSED (Connection refused)"))


def a_trace(verdict: str, tmp_path: Path, n: int = 3) -> Path:
    lines = served(n)
    lines = leak(lines) if verdict == "FAIL" else lines
    lines = lines if verdict == "INCONCLUSIVE" else lines.phase("drain").phase("shutdown").end()
    return lines.write(tmp_path / f"{verdict}.trace")


class Reported(NamedTuple):
    status: int
    out: str
    html: str
    json: dict
    junit: ET.Element


def run(tmp_path: Path, capsys, *traces: Path, policy=("sovereign",)) -> Reported:
    files = {name: tmp_path / f"report.{name}" for name in ("html", "json", "junit")}
    status = report.main(Namespace(traces=list(traces), policy=list(policy), **files))
    return Reported(status, capsys.readouterr().out, files["html"].read_text("utf-8"),
                    json.loads(files["json"].read_text("utf-8")), ET.parse(files["junit"]).getroot())


# --- every format -------------------------------------------------------------------------------

@core
@pytest.mark.parametrize("verdict", STATUS)
def test_every_format_says_the_verdict(verdict, tmp_path, capsys):
    said = run(tmp_path, capsys, a_trace(verdict, tmp_path))
    assert said.status == STATUS[verdict]
    assert said.out.splitlines()[-1].startswith(verdict)
    assert said.json["verdict"] == said.json["reports"][0]["judgement"]["verdict"] == verdict
    assert f'<div class="verdict {verdict}" role="status"><b>{verdict}</b>' in said.html
    assert said.junit.find("testsuite/properties/property[@name='verdict']").get("value") == verdict
    assert (said.junit.get("failures"), said.junit.get("errors")) == {
        "PASS": ("0", "0"), "FAIL": ("1", "0"), "INCONCLUSIVE": ("0", "1")}[verdict]


@core
def test_offending_call_is_named_in_every_format(tmp_path, capsys):
    said = run(tmp_path, capsys, a_trace("FAIL", tmp_path))
    assert "does not hold: connect to 203.0.113.7:443." in said.html
    assert 'class="offence"' in said.html
    assert "connect(7" in said.out and "203.0.113.7" in said.out
    assert "203.0.113.7:443" in said.junit.find(".//failure").text
    (offence,) = said.json["reports"][0]["judgement"]["outcomes"][0]["offences"]
    assert offence["why"] == "to 203.0.113.7:443" and offence["phase"] == "serving"


@core
def test_gap_in_the_evidence_is_named_in_every_format(tmp_path, capsys):
    said = run(tmp_path, capsys, a_trace("INCONCLUSIVE", tmp_path))
    gap = "1 threads have no exit line"
    assert gap in said.html and gap in said.out and gap in said.junit.find(".//error").get("message")
    assert gap in said.json["reports"][0]["incomplete"][0]


@core
def test_several_traces_have_the_worst_verdict(tmp_path, capsys):
    said = run(tmp_path, capsys, *(a_trace(verdict, tmp_path) for verdict in ("PASS", "FAIL", "INCONCLUSIVE")))
    assert (said.status, said.json["verdict"], said.out.splitlines()[-1]) == (1, "FAIL", "FAIL of 3 traces")
    assert len(said.junit) == 3 and said.html.count("<article") == 3
    said = run(tmp_path, capsys, *(a_trace(verdict, tmp_path) for verdict in ("INCONCLUSIVE", "PASS")))
    assert (said.status, said.json["verdict"]) == (2, "INCONCLUSIVE")


@core
def test_without_a_policy_there_is_no_verdict(tmp_path, capsys):
    path = tmp_path / "x.json"
    options = Namespace(traces=[a_trace("PASS", tmp_path)], policy=[], html=tmp_path / "x.html", json=path, junit=None)
    assert report.main(options) == 0
    assert json.loads(path.read_text())["verdict"] is None
    out = capsys.readouterr().out
    assert "PASS sovereign" not in out and out.splitlines()[-1] == "No policy was given."
    assert f"<b>{page.NOT_JUDGED}</b>" in (tmp_path / "x.html").read_text()


@core
def test_bad_input_is_one_clear_line(tmp_path):
    trace = a_trace("PASS", tmp_path)
    for options, expected in (
            ({"junit": tmp_path / "x"}, "--junit needs --policy"),
            ({"html": tmp_path / "none" / "x.html"}, "none/x.html: No such file or directory"),
            ({"traces": [tmp_path / "gone"]}, "gone: No such file or directory"),
            ({"policy": ["no-such"]}, "no policy 'no-such'")):
        with pytest.raises(TraceError, match=re.escape(expected)) as raised:
            report.main(Namespace(**{"traces": [trace], "policy": [], "html": None, "json": None, "junit": None} | options))
        assert "\n" not in str(raised.value)


# --- JSON and JUnit -----------------------------------------------------------------------------

@core
def test_json_has_a_version_and_stable_keys(tmp_path, capsys):
    said = run(tmp_path, capsys, a_trace("PASS", tmp_path)).json
    assert set(said) == {"version", "verdict", "reports"} and said["version"] == 1
    (one,) = said["reports"]
    assert set(one) == {
        "path", "sha256", "lines", "start_ns", "end_ns", "recording", "incomplete", "judgement", "phases", "calls", "reissued",
        "requests", "sample", "files", "more_files", "peers", "more_peers", "listening", "processes", "more_processes",
        "signals", "blind_spots"}
    assert {call["name"]: call["n"] for call in one["calls"] if call["phase"] == "serving"} == {
        "accept4": 1, "recvfrom": 3, "sendto": 3}
    assert [phase["name"] for phase in one["phases"]] == ["startup", "load", "warmup", "serving", "drain", "shutdown"]
    assert one["requests"]["hot_path"]["n"] == len(one["sample"]) == 3
    assert EVIL in [use["path"] for use in one["files"]]


@core
def test_junit_is_as_its_schema_wants_it(tmp_path, capsys):
    for verdict in STATUS:
        root = run(tmp_path, capsys, a_trace(verdict, tmp_path), policy=("sovereign", "steady")).junit
        assert root.tag == "testsuites" and [suite.get("name") for suite in root] == ["sovereign", "steady"]
        for suite in root:
            cases = suite.findall("testcase")
            assert [child.tag for child in suite] == ["properties"] + ["testcase"] * len(cases)
            assert int(suite.get("tests")) == len(cases)
            assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
            assert int(suite.get("errors")) == len(suite.findall("testcase/error"))
            assert all(case.get("name") and case.get("classname") == f"tracing.{suite.get('name')}" for case in cases)
            assert all({child.tag for child in case} <= {"failure", "error", "system-out"} for case in cases)
        for key in ("tests", "failures", "errors"):
            assert int(root.get(key)) == sum(int(suite.get(key)) for suite in root)


@core
def test_junit_holds_what_xml_cannot(tmp_path):
    lines = Lines().start().call('openat(AT_FDCWD</>, "/srv/\\1\\33]]>\\377", O_WRONLY|O_CREAT, 0600) = -1 EACCES (No)')
    judgement = judge.judge(lines.end().write(tmp_path / "a"), load_all(["readonly"]))
    assert ET.fromstring(report.junit(judgement)).find(".//failure") is not None


# --- the page as text ---------------------------------------------------------------------------

class Elements(HTMLParser):
    """Counts of tags, all attributes, and the text."""

    VOID = {"meta", "link", "input", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.open = "", []  # type: str, list[str]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@core
def test_page_is_well_formed_and_no_name_becomes_markup(tmp_path, capsys):
    for verdict in STATUS:
        said = run(tmp_path, capsys, a_trace(verdict, tmp_path), policy=("sovereign", "steady", "readonly"))
        found = Elements(said.html)
        assert not found.open and found.tags["script"] == 1
        assert "<script>alert(1)</script>\\x1b[31m\\u202e\"'&" in found.text
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", said.html + said.out)


@core
def test_page_needs_nothing_else(tmp_path, capsys):
    html = run(tmp_path, capsys, a_trace("PASS", tmp_path)).html
    loaded = [value for name, value in Elements(html).attributes if name in ("src", "href", "srcset", "data", "action")]
    assert loaded == ["data:,"]
    assert not re.search(r"url\(|@import|https?://", html)


@core
def test_page_says_how_it_was_recorded_and_what_no_trace_shows(tmp_path):
    trace = a_trace("PASS", tmp_path)
    view = overview(trace, cost="1.4 times as long")
    text = Elements(report.html(view, None)).text
    for expected in (view.sha256, "1.4 times as long", "-f -yy", "6.1", "full", *BLIND_SPOTS, *view.header.command):
        assert expected in text


@core
def test_page_stays_small_with_many_requests(tmp_path):
    small, large = (len(report.html(overview(a_trace("PASS", tmp_path, n)), None)) for n in (10, 5000))
    assert large < small + 150_000


@core
def test_write_is_for_a_trace_that_was_judged(tmp_path):
    trace = a_trace("FAIL", tmp_path)
    judgement = judge.judge(trace, load_all(["sovereign"]))
    report.write(judgement.path, judgement, html=tmp_path / "x.html", junit=tmp_path / "x.xml", cost="2 times as long")
    assert "2 times as long" in (tmp_path / "x.html").read_text("utf-8")
    assert ET.parse(tmp_path / "x.xml").getroot().get("failures") == "1"
    report.write("nowhere", judgement)  # nothing is asked for: nothing is read


# --- the page in a browser ----------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr""".split()
PATIENCE_S = 60
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


def chromium(tmp_path: Path, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([CHROMIUM, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", *options, file.as_uri()],
                          capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


WIDTHS = (360, 768, 1280)
MEASURE = """
function measure(frame) {
  const at = frame.contentDocument, root = at.documentElement;
  for (const details of at.querySelectorAll("details")) details.open = true;
  const box = at.querySelector(".verdict").getBoundingClientRect();
  const drawings = [...at.querySelectorAll(".drawing")];
  const input = at.querySelector("section input"), rows = [...input.closest("section").querySelectorAll("tbody tr")];
  input.value = "SENDTO";
  input.dispatchEvent(new Event("input"));
  return {width: frame.contentWindow.innerWidth, scroll: root.scrollWidth, top: box.top, left: box.left, right: box.right,
    dots: at.querySelectorAll("path.dots").length, bins: at.querySelectorAll("rect.bin title").length,
    strips: drawings.length, heights: drawings.map(d => d.offsetHeight),
    drawn: drawings.every(d => d.querySelector("svg").clientWidth > 0.4 * root.clientWidth),
    rows: rows.length, shown: rows.filter(row => !row.hidden).map(row => row.cells[0].textContent)};
}
onload = () => {
  document.body.dataset.measured = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
};
"""


def measure(tmp_path: Path, html: str) -> list[dict]:
    """The page in frames (a window cannot be as narrow as a phone), measured with every part unfolded."""
    frames = "".join(f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(html)}"></iframe>'
                     for width in WIDTHS)
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!doctype html><body>{frames}<script>{MEASURE}</script>", "utf-8")
    dom = chromium(tmp_path, wrapper, "--window-size=1400,1000", "--dump-dom").stdout
    found = re.search(r'data-measured="([^"]*)"', dom)
    assert found, "the page could not be measured"
    return json.loads(found[1].replace("&quot;", '"'))


@browser
@pytest.mark.parametrize("verdict", STATUS)
def test_page_fits_a_screen_of_any_width(verdict, tmp_path, capsys):
    trace = a_trace(verdict, tmp_path, N)
    html = run(tmp_path, capsys, trace, policy=("sovereign", "steady", "readonly")).html
    phases = 4 if verdict == "INCONCLUSIVE" else 6
    for width, found in zip(WIDTHS, measure(tmp_path, html), strict=True):
        assert found["width"] == width and found["scroll"] <= width
        assert found["top"] < 150 and 0 <= found["left"] < found["right"] <= width
        assert found["strips"] == phases and sorted(found["heights"])[-2:] == [34, 150] and found["drawn"]
        assert found["dots"] == 1 and 60 <= found["bins"] <= phases * 120
        assert set(found["shown"]) == {"sendto"} and len(found["shown"]) < found["rows"]


def pixels(png: bytes) -> Iterator[str]:
    """The colours of an 8-bit RGB or RGBA image, as hexadecimal digits. https://www.w3.org/TR/png/"""
    width, height, depth, kind = (int.from_bytes(png[16:20]), int.from_bytes(png[20:24]), png[24], png[25])
    assert depth == 8 and kind in (2, 6)
    size = 3 if kind == 2 else 4
    at, data = 8, b""
    while at < len(png):
        length = int.from_bytes(png[at:at + 4])
        data += png[at + 8:at + 8 + length] if png[at + 4:at + 8] == b"IDAT" else b""
        at += 12 + length
    rows, stride = zlib.decompress(data), width * size
    above = bytearray(stride)
    for y in range(height):
        begin = y * (stride + 1)
        row = unfiltered(rows[begin], bytearray(rows[begin + 1:begin + 1 + stride]), above, size)
        yield from (row[x:x + 3].hex() for x in range(0, stride, size))
        above = row


def unfiltered(kind: int, row: bytearray, above: bytearray, size: int) -> bytearray:
    for i in range(len(row)):
        left, up = row[i - size] if i >= size else 0, above[i]
        corner = above[i - size] if i >= size else 0
        row[i] = (row[i] + (0, left, up, (left + up) // 2, paeth(left, up, corner))[kind]) & 255
    return row


def paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda one: abs(guess - one))


@browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("verdict", [*STATUS, page.NOT_JUDGED])
def test_verdict_is_the_first_thing_one_sees(verdict, dark, tmp_path, capsys):
    trace = a_trace(verdict, tmp_path)
    policies = load_all([] if verdict == page.NOT_JUDGED else ["sovereign"])
    file, shot = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(page.page([report.examine(trace, policies)]), "utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(tmp_path, file, "--window-size=600,300", f"--screenshot={shot}", *scheme)
    colours = Counter(pixels(shot.read_bytes()))
    expected = DARK if dark else COLOURS
    assert colours[expected[verdict]] > 600 * 300 * 0.15  # the box
    others = {colour for colour in (*COLOURS.values(), *DARK.values())} - {expected[verdict]}
    assert all(colours[colour] < 600 * 300 * 0.03 for colour in others)  # a badge
    paper = "14171a" if dark else "ffffff"
    assert colours[paper] > 600 * 300 * 0.2
