"""``dpq report`` on the toy adapter, and the parts of its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cli_runs import dpq, install_toy, write_mlp
from safetensors.torch import save_file
from toy_adapter import MLPAdapter

from dpq_core.errors import SpecError
from dpq_core.jobs.report_page import charts
from dpq_core.jobs.report_page.contents import KEPT, read_contents
from dpq_core.jobs.report_page.page import Evidence, Peer, _evidence
from dpq_core.jobs.report_page.texts import differences
from dpq_core.plugin.results import Evaluation, RatedText, Sampling
from dpq_core.run import Run

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """The elements of a page; it fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(autouse=True)
def _installed(monkeypatch, tmp_path):
    install_toy(monkeypatch, tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def net(tmp_path) -> Path:
    return write_mlp(tmp_path / "net.safetensors")


@pytest.fixture
def out(net, tmp_path) -> Path:
    path = tmp_path / "<b>out"
    words = ("-a", "mlp", "-o", path, "--bits", 2, "--iterations", 1, "--no-probe")
    assert dpq("compress", net, *words).code == 0
    return path


def written(*words) -> tuple[str, Page]:
    """The page that ``dpq report`` writes."""
    done = dpq("report", *words)
    assert (done.code, done.out) == (0, ""), done.err
    path = Path(re.search(r"wrote (\S+) \(", done.err)[1])
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_holds_everything_and_needs_nothing(net, out, tmp_path):
    words = (out, "--baseline", net, "-o", tmp_path / "r.html", "--rows", 8)
    text, page = written(*words, "--peer", "another,5KB,power=12.5")
    for part in ("codes", "codebooks", "row scale", "kept tensors", "w1", "w2", "b1", "power"):
        assert part in text
    assert "another" in text
    assert "The codes of 2 layers carry" in text
    assert "http" not in text
    assert [a for tag in ("link", "script", "iframe", "img") for a in page.all(tag)] == []
    assert "<b>out" not in text.replace("&lt;b&gt;out", "")
    assert len(text) < 100_000


def test_the_page_can_be_used_by_everyone(net, out, tmp_path):
    peer = ("--peer", "another,5KB,power=12.5")
    _, page = written(out, "--baseline", net, "-o", tmp_path / "r.html", *peer)
    assert page.all("html") == [{"lang": "en"}]
    charts_ = page.all("svg")
    assert len(charts_) >= 4
    assert all(c["role"] == "img" and len(c["aria-label"]) > 10 for c in charts_)
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    pointed = [a["href"][1:] for a in page.all("a")] + [
        a["aria-labelledby"] for a in page.all("section")
    ]
    assert set(pointed) <= set(names)
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert all("scope" in a for a in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_pictures_are_inside_the_page(net, out, tmp_path, monkeypatch):
    def sample(self, source, options, run, folder):
        (folder / "grid.png").write_bytes(b"\x89PNG")
        (folder / "data.bin").write_bytes(b"x")
        return Sampling(files=(folder / "grid.png", folder / "data.bin"))

    monkeypatch.setattr(MLPAdapter, "sample", sample)
    text, page = written(out, "-o", tmp_path / "r.html", "--no-measure")
    (picture,) = page.all("img")
    assert picture["src"] == "data:image/png;base64,iVBORw=="
    assert picture["alt"] == "grid of <b>out"
    assert "1 more files" in text


def test_a_text_is_coloured_by_its_numbers(out, tmp_path, monkeypatch):
    pieces = (("The", 0.0), (" <cat>", 2.0), (" sat", 0.5))
    text = RatedText(name="surprise, nats", pieces=pieces)
    rated = Evaluation(metrics=(), text=text)
    monkeypatch.setattr(MLPAdapter, "evaluate", lambda *_: rated)
    for _ in range(2):  # measured, then read back
        page, _ = written(out, "-o", tmp_path / "r.html", "--no-evidence")
        assert "surprise, nats" in page
        assert 'title="2"> &lt;cat&gt;</span>' in page
        assert "“&lt;cat&gt;” 2" in page
        styles = re.findall(r"--a: (\d+)%", page)
        assert styles == ["0", "45", "45"]  # full from the 95th percentile on, here 0.5


def test_what_is_not_wanted_is_left_out(out, tmp_path, monkeypatch):
    def sample(*_):
        raise SpecError("nothing to draw")

    monkeypatch.setattr(MLPAdapter, "sample", sample)
    text, _ = written(out, "-o", tmp_path / "r.html")
    assert "No samples: nothing to draw" in text
    text, _ = written(out, "-o", tmp_path / "r.html", "--no-evidence", "--no-measure")
    assert "Samples" not in text


def test_a_report_is_about_artifacts(net, out, tmp_path):
    done = dpq("report", out, net, "-o", tmp_path / "r.html")
    assert done.code == 1
    assert "is not a dpq artifact" in done.err


def test_parts_sum_up_to_the_size(out):
    contents = read_contents(str(out), Run())
    assert sum(contents.parts.values()) == contents.nbytes
    assert contents.parts[KEPT] == 96 * 4
    assert sum(x.nbytes for x in contents.layers) == sum(contents.blocks["other"].values())
    assert {x.name: x.error is None for x in contents.layers} == {
        "w1": False,
        "b1": True,
        "w2": False,
    }


def test_usage_counts_codes(tmp_path):
    """Two values in equal shares take one bit of the code, and leave 254 codewords."""
    matrix = torch.ones(64, 64)
    matrix[:, ::2] = -1
    save_file({"w1": matrix, "w2": torch.randn(8, 64)}, tmp_path / "two.safetensors")
    words = ("--d", 1, "--K", 4, "--scope", "tensor", "--no-row-scale", "--no-probe")
    done = dpq("compress", tmp_path / "two.safetensors", "-a", "mlp", "-o", tmp_path / "o", *words)
    assert done.code == 0, done.err
    layer = next(x for x in read_contents(str(tmp_path / "o"), Run()).layers if x.name == "w1")
    assert layer.code_bits == 2
    assert layer.entropy == pytest.approx(1, abs=1e-6)
    assert layer.unused == 0.5


def test_words_that_differ_are_marked():
    before, after = differences("the cat sat down", "the dog sat")
    assert "".join(p.text for p in before) == "the cat sat down"
    assert "".join(p.text for p in after) == "the dog sat"
    assert [p.text for p in before if p.differs] == ["cat", " down"]
    assert [p.text for p in after if p.differs] == ["dog"]


@pytest.mark.parametrize("text", ["", "a", "a,5MB", "a,5MB,x", "a,b,x=1", "a,5MB,x=y"])
def test_a_peer_without_a_size_or_a_value_is_refused(text):
    with pytest.raises(SpecError, match="NAME,SIZE,METRIC=VALUE"):
        Peer.parse(text)
    assert Peer.parse("a b, 5MB, x=1, y=2") == Peer("a b", 5_000_000, {"x": 1.0, "y": 2.0})


def test_large_pictures_stay_outside(tmp_path):
    path = tmp_path / "large.gif"
    path.write_bytes(bytes(6_000_001))
    assert _evidence(Evidence(files=(path,)))["left_out"] == ["large.gif"]


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-3.0, 5e9], [1e-9, 2e-9]])
def test_charts_stay_inside_their_picture(values):
    points = [charts.Point(10.0 * (i + 1), v, f"<{i}>") for i, v in enumerate(values)]
    for svg in (charts.scatter(points, "t", "y"), charts.dots(points, "t", "u", "x")):
        Page(svg)
        assert "<0>" not in svg
        places = [float(x) for x in re.findall(r'\bc[xy]="([^"]+)"', svg)]
        assert all(0 <= place <= charts.WIDTH for place in places), svg


def test_labels_keep_off_each_other():
    points = [charts.Point(1e6, 1.0, f"model {i}") for i in range(3)]
    heights = re.findall(r'y="([^"]+)"[^>]*>model', charts.scatter(points, "t", "y"))
    assert len(set(heights)) == 3


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="missing browser: chromium")
def test_a_browser_shows_the_page_without_errors_or_overflow(net, out, tmp_path):
    text, _ = written(out, "--baseline", net, "-o", tmp_path / "r.html")
    said = "document.title = [document.documentElement.scrollWidth <= innerWidth, window.failed]"
    script = (
        f"<script>onerror = () => {{ window.failed = 1 }}; onload = () => {{ {said} }}</script>"
    )
    (tmp_path / "p.html").write_text(text.replace("<head>", f"<head>{script}"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900"]
    home = f"--user-data-dir={tmp_path / 'browser'}"
    page = (tmp_path / "p.html").as_uri()
    command = ["chromium", *options, home, "--dump-dom", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>true,</title>" in shown
