"""The pages hang together: every one is in the table of contents, links lead somewhere, tables are what the code says."""

import importlib.util
import re

import generated_tables
import pytest
from fenced_blocks import DOCS, PAGES, ROOT

import bmtard_hooks
from bmtard_hooks import BMTARDConfig, method_names
from bmtard_hooks.evaluation.checks.registry import CHECKS
from bmtard_hooks.options import MethodOptions

SUBPACKAGES = ("attacks", "callbacks", "methods", "models", "evaluation", "compare", "reporting", "plots")


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def anchor(heading):
    """Write a heading as code hosts and MyST do in links."""
    words = re.sub(r"[`*]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(page):
    return {anchor(found) for found in re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.M)}


def links(page):
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))


def in_toctrees(page):
    text = page.read_text()
    if page.suffix == ".rst":
        blocks = re.findall(r"^\.\. toctree::\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
    else:
        blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.S | re.M)
    names = [line.strip() for block in blocks for line in block.splitlines()]
    return {(page.parent / name).resolve() for name in names if name and not name.startswith(":")}


def test_every_page_is_in_the_table_of_contents_once():
    pages = [page for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")] if page != DOCS / "index.md"]
    listed = [path for page in [DOCS / "index.md", DOCS / "api" / "index.rst"] for path in in_toctrees(page)]
    assert sorted(listed) == sorted(page.with_suffix("") for page in pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_named_exist(page):
    for link in links(page):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, part = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not part or part in anchors(target), f"{page.name}: {link}"
    for path in set(
        re.findall(r"(?<![\w/.])(?:recipes|docs|bmtard_hooks|benchmarks)/[\w./]*\w(?![\w$*])", page.read_text())
    ):
        assert (ROOT / path).exists() or (ROOT / path).with_suffix(".json").exists(), f"{page.name}: {path}"
    for target in re.findall(r"`make ([\w-]+)`", page.read_text()):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"{page.name}: make {target}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if generated_tables.marks(page.read_text())], ids=lambda page: page.name
)
def test_tables_are_those_of_the_code(page):
    assert generated_tables.rewritten(page.read_text()) == page.read_text(), (
        "run python tests/docs/generated_tables.py"
    )


def test_every_method_and_every_option_of_a_method_is_on_its_page():
    page = (DOCS / "methods.md").read_text()
    assert sorted(generated_tables.ORDER) == method_names()
    for name in (*method_names(), *(entry for entry in MethodOptions.__dataclass_fields__)):
        assert re.search(rf"\| `{name}` \|", page), name


def test_every_check_is_explained_in_order():
    page = (DOCS / "evaluation.md").read_text()
    explained = re.findall(r"^\*\*([PA]\d+)\*\*", page, re.M)
    assert explained == [check.id for check in CHECKS] and len(explained) == 17


def test_every_public_name_is_in_the_reference():
    documented = set()
    for page in (DOCS / "api").glob("*.rst"):
        documented |= {
            name.rpartition(".")[2] for name in re.findall(r"^\.\. auto\w+:: (\S+)", page.read_text(), re.M)
        }
    public = set(bmtard_hooks.__all__)
    for package in SUBPACKAGES:
        public |= set(getattr(importlib.import_module(f"bmtard_hooks.{package}"), "__all__", ()))
    assert public <= documented, public - documented


def test_site_lists_every_option_and_drops_links_that_leave_it():
    pytest.importorskip("sphinx")
    place = importlib.util.spec_from_file_location("conf_of_the_site", DOCS / "conf.py")
    conf = importlib.util.module_from_spec(place)
    place.loader.exec_module(conf)
    lines, source = [], ["see [the README](../README.md#speed) and [methods](methods.md)"]
    conf.list_options(None, "class", "BMTARDConfig", BMTARDConfig, None, lines)
    conf.unlink_outside(None, "page", source)
    assert source == ["see the README and [methods](methods.md)"]
    for name in ("method", "eps", "igdm_weight", "learning_rate"):
        assert any(line.startswith(f"* ``{name}`` = ") for line in lines), name


def test_words_in_code_type_that_look_like_options_are_options():
    known = set(BMTARDConfig.__dataclass_fields__)
    for page in PAGES:
        text = without_code(page.read_text())
        for name in re.findall(r"`--([a-z]\w*)", text):
            programs = (
                (ROOT / "bmtard_hooks").rglob("*.py"),
                (ROOT / "benchmarks").glob("*.py"),
                (ROOT / "recipes").glob("*.py"),
            )
            if name not in known:
                assert any(f"{name}" in path.read_text() for group in programs for path in group), (
                    f"{page.name}: --{name}"
                )
