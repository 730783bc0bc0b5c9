"""`neuzip inspect --html`: the page in a browser, with names that try to break out of it."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from chromium import open_page, start_browser
from click.testing import CliRunner, Result
from safetensors_file import Tensor, build

from neuzip import compress_file
from neuzip.cli.html import escape, tag
from neuzip.cli.main import program

HOSTILE = (
    "<script>document.title='broken'</script>",
    "\"'><img src='http://example.com/x.png' onerror=\"document.title='broken'\">",
    "</style></title><base href='http://example.com/'>",
    "&lt;b&gt; \u202e\x00\n" + "y" * 3000,
)
MOST_BYTES = 1_000_000


def run(*arguments: object) -> Result:
    return CliRunner().invoke(program, ["inspect", *map(str, arguments)])


def weights(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).normal(0, 0.02, count).astype(ml_dtypes.bfloat16).tobytes()


def write(path: Path, names: list[str], count: int) -> Path:
    tensors = [Tensor(name, "BF16", (count,), weights(count, seed)) for seed, name in enumerate(names)]
    path.write_bytes(build(tensors))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A compressed checkpoint in two files, its names hostile, with a duplicate, an integer and an empty tensor."""
    root = tmp_path / "model <b>&amp;"
    root.mkdir()
    write(root / "a.safetensors", [f"model.layers.{n}.weight" for n in range(12)], 20_000)
    tensors = [Tensor(name, "BF16", (5000,), weights(5000, 99)) for name in HOSTILE]
    tensors += [Tensor("ids", "I64", (100,), bytes(800)), Tensor("empty", "F32", (0,), b"")]
    (root / "b.safetensors").write_bytes(build(tensors))
    destination = compress_file(root).destination
    assert destination is not None
    return destination


def test_the_page_in_a_browser(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run(folder, "--html", page, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    totals = json.loads(result.stdout)
    with start_browser() as browser:
        tab = open_page(browser, page)
        assert tab.requests == [page.as_uri()]
        assert tab.complaints == []
        assert tab.evaluate("document.title") == "model <b>&amp;.nz · neuzip"
        assert tab.evaluate("document.querySelectorAll('script, img, base, iframe, link, b').length") == 0
        shown = tab.evaluate("document.body.innerText")
        for number in (totals["original_size"], totals["compressed_size"]):
            assert f"{number:,} bytes" in shown
        ratio = f"{totals['compressed_size'] / totals['original_size']:.4f}".removeprefix("0")
        assert tab.evaluate("document.querySelector('#ratio strong').innerText") == ratio
        assert tab.evaluate("document.querySelectorAll('#worst tbody tr').length") == 10
        assert tab.evaluate("document.querySelectorAll('#best tbody tr').length") == 10
        assert tab.evaluate("document.querySelectorAll('.dot').length") == 12 + len(HOSTILE)
        assert HOSTILE[0] in shown  # as text
        copies = tab.evaluate("document.querySelector('.copies tbody').innerText")
        assert all(escape_for_reading(name)[:20] in copies for name in HOSTILE)
        assert tab.evaluate("document.querySelectorAll('.layers tbody tr').length") == 12 + len(HOSTILE) + 1
        colours = []
        for scheme in ("light", "dark"):
            tab.prefer(scheme)
            colours.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colours[0] != colours[1]
        for width in (360, 800, 1600):
            tab.resize(width, 800, phone=width < 600)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
        tab.evaluate("document.querySelector('details').open = true")
        listed = tab.evaluate("document.querySelectorAll('details tbody tr').length")
        assert listed == 12 + len(HOSTILE) + 2
        assert tab.evaluate("document.title") != "broken"
        assert tab.complaints == []
        assert tab.picture().startswith(b"\x89PNG")


def escape_for_reading(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def test_a_plain_file_shows_what_could_be(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", ["w", "v"], 9000)
    page = tmp_path / "r.html"
    assert run(path, "--html", page, "-q").output == ""
    text = page.read_text()
    assert "what compression could reach" in text
    assert "No two tensors hold the same bytes." in text
    assert 'class="dot"' not in text


def test_the_page_of_very_many_tensors_is_bounded(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.{'<&>' * 300}" for n in range(5000)]
    path = tmp_path / "m.safetensors"
    shared = weights(2)
    path.write_bytes(build(Tensor(name, "BF16", (2,), shared) for name in names))
    page = tmp_path / "r.html"
    assert run(path, "--html", page, "-q").exit_code == 0
    assert page.stat().st_size < MOST_BYTES
    text = page.read_text()
    assert "5000 tensors" in text
    assert "4700 smaller tensors" in text
    assert "4904 smaller ones" in text


@pytest.mark.parametrize("names", [[], ["scalar"]])
def test_next_to_nothing(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path / "m.safetensors", names, 1)
    for file in (path, compress_file(path).destination):
        page = tmp_path / "r.html"
        result = run(file, "--html", page, "-q", "--force")
        assert (result.exit_code, result.output) == (0, "")
        assert page.read_text().endswith("</html>\n")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", ["w"], 100)
    before = path.read_bytes()
    result = run(path, "--html", path, "-q")
    assert result.exit_code == 1
    assert "exists" in result.stderr
    assert path.read_bytes() == before
    assert run(path, "--html", tmp_path / "no" / "r.html", "-q").exit_code == 1
    assert sorted(tmp_path.iterdir()) == [path]


def test_text_becomes_markup_escaped() -> None:
    assert escape("<a href=\"x\" b='y'>&") == "&lt;a href=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;"
    assert escape("a\x00\u202e\n") == "a\\x00\\u202e\\n"
    assert tag("p", "<", tag("b", ">"), title='"') == '<p title="&quot;">&lt;<b>&gt;</b></p>'
    assert tag("line", x1="0", stroke_width=2, class_=None) == '<line x1="0" stroke-width="2"/>'
