"""Which links of a folder of HTML pages lead nowhere, and what its pages load from other hosts."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src", "source": "src"}


class _Page(HTMLParser):
    """The links of a page, the places in it that links can name, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag's link and name."""
        given = dict(attrs)
        self.anchors |= {name for name in (given.get("id"), given.get("name")) if name}
        target = given.get(_LINKS.get(tag, ""))
        if not target or given.get("rel") == "canonical":
            return
        self.links.append(target)
        if tag != "a":
            self.loaded.append(target)


def broken_links(site: Path) -> list[str]:
    """Links between pages that lead to no file, or to no place in one, each with its page."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    broken: list[str] = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else path.parent
            goal = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if goal.is_dir():
                goal = goal / "index.html"
            is_missing = not goal.is_file() or not goal.is_relative_to(site)
            anchor = unquote(parts.fragment)
            if is_missing or (anchor and goal in pages and anchor not in pages[goal].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What pages and style sheets load from other hosts; links that a reader may follow do not count."""
    found = [
        f"{path.relative_to(site)}: {target}"
        for path in sorted(site.rglob("*.html"))
        for target in _Page(path.read_text(encoding="utf-8")).loaded
        if urlsplit(target).netloc
    ]
    for path in sorted(site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path.relative_to(site)}: {mark}" for mark in ("url(http", "url(//", "@import") if mark in text
        ]
    return found
