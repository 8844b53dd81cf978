"""What JupyterLab keeps of the HTML in an untrusted notebook, as far as the views need it."""

import re
from html.parser import HTMLParser

TAGS = {"b", "br", "details", "div", "i", "img", "span", "summary", "table", "td", "th", "tr"}
ATTRIBUTES = {"class", "style", "title", "open", "colspan", "src", "alt"}
# fmt: off
STYLES = {
    "background", "background-color", "background-image", "border", "border-bottom", "border-collapse",
    "border-top", "color", "display", "flex", "flex-wrap", "font-family", "font-size", "font-style", "font-weight",
    "gap", "height", "line-height", "margin", "margin-bottom", "margin-left", "max-width", "min-width", "opacity",
    "overflow", "overflow-wrap", "padding", "table-layout", "text-align", "vertical-align", "white-space", "width",
}
# fmt: on
PICTURE = re.compile(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/]+=*")
VOID = {"img", "br"}
COLOUR = re.compile(r"#[0-9a-f]{3,6}|rgba\(\d+,\d+,\d+,(1|0?\.\d+)\)", re.IGNORECASE)


class Checker(HTMLParser):
    """Collects the visible text, and everything that an untrusted notebook would lose."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.marks = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img" and not dict(attrs).get("alt"):
            self.problems.append("a picture without words")
        self.marks += tag in ("b", "i") and "title" in dict(attrs)
        if tag not in TAGS:
            self.problems.append(f"<{tag}>")
        for name, value in attrs:
            if name not in ATTRIBUTES:
                self.problems.append(f"{tag}[{name}]")
            elif name == "class" and value != "mathjax_ignore tex2jax_ignore":
                self.problems.append(f"class {value!r}")
            elif name == "src" and not PICTURE.fullmatch(value or ""):
                self.problems.append(f"src {value!r:.60}")
            elif name == "title":
                self.titles.append(value or "")
            elif name == "style":
                self._check_style(value or "")

    def _check_style(self, style: str) -> None:
        for rule in style.split(";"):
            name, _, value = rule.partition(":")
            if name not in STYLES:
                self.problems.append(f"style {name!r}")
            if name in {"color", "background"} and not COLOUR.fullmatch(value):
                self.problems.append(f"{name}: {value!r}")
            if "url" in value.lower() or "var(" in value:
                self.problems.append(f"{name}: {value!r}")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.problems.append(f"comment {data[:40]!r}")

    def handle_decl(self, decl: str) -> None:
        self.problems.append(f"declaration {decl[:40]!r}")

    def unknown_decl(self, data: str) -> None:
        self.problems.append(f"declaration {data[:40]!r}")

    def handle_pi(self, data: str) -> None:
        self.problems.append(f"instruction {data[:40]!r}")


def check(html: str) -> Checker:
    """Assert that nothing of `html` would be lost, and return what was read."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.problems, sorted(set(checker.problems))[:10]
    assert checker.open == []
    return checker
