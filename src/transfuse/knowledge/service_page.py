"""The page at `/` to search by hand: one file, and headers that let it load nothing from elsewhere."""

import base64
import hashlib
import re
from pathlib import Path

_FILE = Path(__file__).with_name("search_page.html")


def search_page() -> tuple[str, dict[str, str]]:
    """The page, and its headers: only its own script and style, named by their digests, may run."""
    html = _FILE.read_text(encoding="utf-8")
    rules = [
        "default-src 'none'",
        f"script-src {_digest(html, 'script')}",
        f"style-src {_digest(html, 'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return html, {"content-security-policy": "; ".join(rules), "referrer-policy": "no-referrer"}


def _digest(html: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
