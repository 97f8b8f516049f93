"""What every command prints with."""

import sys
from typing import Any


def console() -> Any:
    """A rich console as wide as the terminal, or 100 columns where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100)
