import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image
from sample_report import sample_report, worst_case_report

from bmtard_hooks.reporting.figures import draw_figures
from bmtard_hooks.reporting.outputs import write_report
from bmtard_hooks.reporting.page import write_page
from bmtard_hooks.reporting.report_file import load_report
from bmtard_hooks.reporting.table import Column, Table

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EVIL = "<script>alert(1)</script> & \"quoted\" 'name'"
VOID = {"meta", "link", "img", "br"}


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two pages, of one model and of three, for the tests that only read them."""
    directory = tmp_path_factory.mktemp("pages")
    one = [sample_report(warnings=["The checkpoint was picked on these images."])]
    three = [sample_report(), sample_report("A" * 60, failed=True, seed=1), sample_report(EVIL, seed=2, examples=[])]
    pictures = draw_figures(one, 60)
    return {
        name: write_page(reports, directory / f"{name}.html", pictures=pictures)
        for name, reports in {"one": one, "three": three}.items()
    }


@pytest.fixture(params=["one", "three"])
def page(request, pages):
    return pages[request.param]


def test_page_is_well_formed_and_can_be_read_aloud(page):
    outline = Outline(page.read_text())
    assert outline.all("html") == [{"lang": "en"}]
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(outline.headings, outline.headings[1:], strict=False))
    assert all(attributes.get("alt") for attributes in outline.all("img")) and outline.all("img")
    assert all(attributes.get("scope") in ("col", "row", "colgroup") for attributes in outline.all("th"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in outline.all("meta")


def test_page_loads_nothing_from_elsewhere_and_runs_nothing(page):
    text = page.read_text()
    outline = Outline(text)
    assert not outline.all("script") and not outline.all("iframe")
    links = [value for _, attributes in outline.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links and all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import|https?://", text)


def test_verdict_comes_first_in_words(pages):
    text = "".join(Outline(pages["three"].read_text()).words)
    assert text.index("⚠ AAAA") < text.index(": checks failed.") < text.index("Robustness under each attack")
    assert "A3 (passes if: gradients of cross-entropy and margin exist): 99 % of images have gradient 0" in text
    assert "Warning: The checkpoint was picked on these images." in pages["one"].read_text()
    order = ["Under the strongest attack", "Robustness under each attack", "Checks against", "Classes", "Figures"]
    places = [text.index(part) for part in [*order, "Settings of the attacks", "Data and environment", "How to read"]]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("failed", "word"), [("none", "checks passed."), ("A7", "checks passed with warnings."), ("all", "not checked.")]
)
def test_other_verdicts_have_their_words(failed, word, tmp_path):
    report = sample_report(attacks=("fgsm",))
    report.checks = [] if failed == "all" else report.checks
    for check in report.checks:
        object.__setattr__(check, "status", "fail" if check.id == failed else check.status)
    assert (
        f'<span class="word">{report.model}: {word}</span>'
        in write_page([report], tmp_path / "page.html", pictures=[]).read_text()
    )


def test_names_stay_text(tmp_path):
    report = sample_report(EVIL, dataset=EVIL, label_names=[EVIL] * 10, warnings=[EVIL], failed=True, examples=[])
    report.columns = {EVIL: ["fgsm"]}
    report.outcomes["fgsm"].settings["loss"] = EVIL
    report.environment.update({EVIL: EVIL, "command": EVIL})
    table = Table(EVIL, [Column(EVIL)], [[EVIL]], EVIL, [EVIL], stack=True)
    path = write_page([report], tmp_path / "page.html", {EVIL: EVIL, "table": table}, draw_figures([report], 40))
    outline = Outline(path.read_text())
    assert not outline.all("script")
    assert EVIL in "".join(outline.words)


def test_further_sections_keep_the_lines_of_a_table(tmp_path):
    text = "One remark.\nAnother.\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    page = write_page([sample_report(attacks=("fgsm",))], tmp_path / "page.html", {"Pairs": text}, []).read_text()
    assert (
        '<h2>Pairs</h2>\n<p>One remark.<br>Another.</p>\n<pre tabindex="0">| a | b |\n|---|---|\n| 1 | 2 |</pre>'
        in page
    )


def test_missing_matplotlib_costs_only_the_figures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    written = write_report([sample_report()], tmp_path)
    assert sorted(written) == ["html", "json", "markdown"]
    text = written["html"].read_text()
    assert "<img" not in text and "pip install &#x27;bmtard_hooks[recipes]&#x27;" in text


def test_one_model_gets_json_markdown_page_and_figures(tmp_path):
    report = worst_case_report(sweeps={}, examples=[])
    written = write_report([report], tmp_path / "new", {"Remark": "Made up."})
    assert {path.relative_to(tmp_path / "new").as_posix() for path in written.values()} == {
        "report.json",
        "report.md",
        "report.html",
        "figures/per_class.png",
    }
    assert load_report(written["json"]).rows() == report.rows()
    assert "Made up." in written["markdown"].read_text() and "Made up." in written["html"].read_text()


def test_no_reports_are_refused(tmp_path):
    for write in (write_page, write_report):
        with pytest.raises(ValueError, match="at least one"):
            write([], tmp_path / "page")
    assert not list(tmp_path.iterdir())


def browse(tmp_path, *options):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    fixed = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    return subprocess.run([browser, *fixed, *options], capture_output=True, text=True, timeout=120, check=True).stdout


def test_browser_shows_the_page(pages, tmp_path):
    picture = tmp_path / "page.png"
    browse(tmp_path, f"--screenshot={picture}", "--window-size=360,2000", pages["three"].as_uri())
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_page_never_scrolls_sideways(page, tmp_path):
    # In frames, because a browser's window cannot be made as narrow as a phone; unfolded, so that all is measured.
    tell = "parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*')"
    text = page.read_text().replace("<details>", "<details open>")
    (tmp_path / "inner.html").write_text(text.replace("</body>", f"<script>onload = () => {tell}</script></body>"))
    listen = "<script>onmessage = event => { document.title += ' measured ' + event.data.join(' of ') }</script>"
    frames = "".join(f'<iframe src="inner.html" width="{width}" height="800"></iframe>' for width in (360, 1200))
    style = "<style>iframe { border: 0 }</style>"
    (tmp_path / "outer.html").write_text(f"<!DOCTYPE html><title></title>{style}{listen}{frames}")
    shown = browse(tmp_path, "--dump-dom", "--virtual-time-budget=5000", (tmp_path / "outer.html").as_uri())
    measured = {int(inner): int(content) for inner, content in re.findall(r"measured (\d+) of (\d+)", shown)}
    assert set(measured) == {360, 1200}
    assert all(content <= inner for inner, content in measured.items())
