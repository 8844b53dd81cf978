"""The documentation: links lead somewhere, code on the quickstart runs, claim checks have their papers."""

import re
from pathlib import Path

import pytest

from sparselens.models.packaged import PACKAGED, cache_folder

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("notebooks/*.md")])
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
MODEL = "smollm2-135m-instruct"


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    bare = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", bare).strip().lower())


def anchors(page: Path) -> set[str]:
    """All anchors of a page."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead; code is left out."""
    return [a or b for a, b in LINK.findall(CODE.sub("", page.read_text("utf-8")))]


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere. Those to other machines must be https, and are not followed."""
    bad = []
    for link in links(page):
        if re.match(r"\w+:", link):
            if not re.match(r"https://[\w.-]+\.\w+(/\S*)?$", link):
                bad.append(link)
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            bad.append(link)
    return bad


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_the_check_of_links_itself(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# A `b` c\n[x](#a-b-c) [y](a.md#no) [z](b.md) [w](http://a.org) [v](https://a.org/b) `[q](no.md)`")
    assert broken(page) == ["a.md#no", "b.md", "http://a.org"]


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if f": {page.relative_to(DOCS)}" not in menu
            and f"- {page.relative_to(DOCS)}" not in menu] == []


def test_pictures_are_small_and_used():
    used = {link for page in PAGES for link in links(page)}
    for picture in (DOCS / "assets").glob("*.png"):
        assert picture.stat().st_size < 150_000, picture.name
        assert any(link.endswith(f"assets/{picture.name}") for link in used), f"{picture.name} is shown nowhere"


def test_a_claim_check_belongs_to_a_paper_or_says_what_it_checks():
    checks = set(re.findall(r"claim_\w+\.py", (DOCS / "papers.md").read_text("utf-8")))
    others = {path.name for path in (ROOT / "tests" / "claims").glob("claim_*.py")} - checks
    for name in others:  # such as one paper's second check
        doc = (ROOT / "tests" / "claims" / name).read_text("utf-8").split('"""')[1]
        assert len(doc.split()) >= 5, f"{name} belongs to no row, and does not say what it checks"


@pytest.mark.slow
def test_the_quickstart_runs():
    folder = cache_folder() / "models" / f"{MODEL}-{PACKAGED[MODEL].sha256[:12]}-float16"
    if not (folder / "config.json").exists():
        pytest.skip("the packaged model is not in the cache; `make demo` fetches it")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    assert scope["done"].untouched != scope["done"].steered
