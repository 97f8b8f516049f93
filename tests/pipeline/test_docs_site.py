"""The documentation site builds strictly, its links lead somewhere, and it needs no other host."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from site_links import broken_links, loaded_from_elsewhere

pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")

ROOT = Path(__file__).parents[2]
HOOKS = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder.resolve()


def test_every_link_and_anchor_of_the_site_exists(site):
    assert broken_links(site) == []


def test_the_site_loads_nothing_from_other_hosts(site):
    assert loaded_from_elsewhere(site) == []


def test_links_out_of_docs_become_links_within_the_site(site):
    page = (site / "fuse.html").read_text(encoding="utf-8")
    assert 'href="measurements.html"' in page
    assert "../benchmarks/LOG.md" not in page
    papers = (site / "papers.html").read_text(encoding="utf-8")
    assert 'href="reference/tensors.html#transfuse.tensors.token_alignment"' in papers


def test_every_public_module_stands_in_the_reference(site):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html")}
    source = ROOT / "src" / "transfuse"
    for module in source.glob("[a-z]*/[a-z]*.py"):
        room = module.parent.name
        if room != "cli":
            assert f'id="transfuse.{room}.{module.stem}"' in pages[room], module


@pytest.mark.parametrize(
    ("text", "pages", "said"),
    [
        ("# Home\n\n[there](gone.md)\n", {}, "'gone.md'"),
        (
            "# Home\n\n[there](other.md#gone)\n",
            {"other.md": "# Other\n"},
            "does not contain an anchor '#gone'",
        ),
        ("# Home\n", {"unlisted.md": "# Unlisted\n"}, 'not included in the "nav"'),
    ],
    ids=["broken link", "missing anchor", "page outside the navigation"],
)
def test_a_site_with_a_fault_is_refused(tmp_path, text, pages, said):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, content in {"index.md": text, **pages}.items():
        (docs / name).write_text(content)
    nav = ["index.md", *(name for name in pages if name != "unlisted.md")]
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        yaml.safe_dump(
            {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": "docs", "nav": nav, "plugins": [], "hooks": []}
        )
    )
    done = build(config, tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    ("page", "link", "goal"),
    [
        ("fuse.md", "../benchmarks/LOG.md#table", "measurements.md#table"),
        ("measurements.md", "../docs/fusion.svg", "fusion.svg"),
        ("how-to/several-gpus.md", "../../README.md", "index.md"),
        ("papers.md", "../src/transfuse/fuse/targets.py", "reference/fuse.md#transfuse.fuse.targets"),
        ("papers.md", "../src/transfuse/types.py", "reference/transfuse.md#transfuse.types"),
        ("papers.md", "../src/transfuse/fuse/gone.py", None),
        ("faq.md", "../examples/orvessa/document.md", "files/examples/orvessa/document.md.txt"),
        ("faq.md", "https://example.org/a.md", None),
        ("faq.md", "../../elsewhere.md", None),
    ],
)
def test_a_link_of_the_repository_has_its_place_on_the_site(page, link, goal):
    inside = HOOKS["_in_repository"](link, page)
    assert (inside and HOOKS["_goal"](inside, link)) == goal


def test_links_in_shown_code_are_left_alone():
    lines = list(HOOKS["_lines_with_code"]("a\n```sh\nb\n~~~\n```\nc\n"))
    assert [is_code for _, is_code in lines] == [False, True, True, True, True, False]


def test_the_link_checker_finds_what_mkdocs_cannot_see(tmp_path):
    (tmp_path / "index.html").write_text(
        '<p id="here"><a href="#here">1</a><a href="#gone">2</a><a href="b.html#there">3</a><a href="c.html">4</a>'
        '<a href="b.html#nowhere">5</a><a href="https://example.org/x">6</a><script src="https://cdn.example/x.js">'
        '</script><img src="gone.svg"></p>'
    )
    (tmp_path / "b.html").write_text('<a name="there"></a><a href="../outside.html">7</a>')
    assert broken_links(tmp_path.resolve()) == [
        "b.html: ../outside.html",
        "index.html: #gone",
        "index.html: c.html",
        "index.html: b.html#nowhere",
        "index.html: gone.svg",
    ]
    assert loaded_from_elsewhere(tmp_path) == ["index.html: https://cdn.example/x.js"]
