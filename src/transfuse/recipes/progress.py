"""What a person sees while a run works: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_EVERY_S = 15.0
"""Seconds between lines where the output is no terminal."""

MOST_HOURS = 72
"""Longer times are told in days."""

Advance = Callable[[int, int, str], None]
"""Called with the numbers done and to do, and a note."""


def time_text(seconds: float) -> str:
    """A duration as a person says it: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def span_text(seconds: float) -> str:
    """The same, of times so long that they are told in days: `12 days`."""
    return time_text(seconds) if seconds < MOST_HOURS * 3600 else f"{seconds / 86400:,.0f} days"


def size_text(n_bytes: int) -> str:
    """Bytes as a person says them: `1.5 GiB`."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1024:,.1f} KiB"


@final
class Display:
    """Progress on standard error; silent in every process but the first."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=is_silent)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        """A bar with a rate and the time left.

        Args:
            title: what is being done.

        Yields:
            A function to call with the numbers done and to do, and a note (perhaps empty).
        """
        if self._console.is_terminal:
            with Progress(
                TextColumn("{task.description:24}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self._console,
            ) as progress:
                task = progress.add_task(title, total=None, note="")
                rate = _Rate()

                def advance(done: int, total: int, note: str = "") -> None:
                    progress.update(task, completed=done, total=total, note=note or rate.note(done, total))

                yield advance
        else:
            yield self._plain_bar(title)

    def _plain_bar(self, title: str) -> Advance:
        rate = _Rate()
        last = time.monotonic()

        def advance(done: int, total: int, note: str = "") -> None:
            nonlocal last
            if 0 < done == total or time.monotonic() - last > PLAIN_EVERY_S:
                last = time.monotonic()
                count = f"{done}/{total}, " if total else ""
                self.say(f"{title}: {count}{note or rate.note(done, total)}")

        return advance


class _Rate:
    """Items a second since the start, and what that leaves."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def note(self, done: int, total: int) -> str:
        elapsed = time.monotonic() - self._started
        if not done or elapsed <= 0:
            return ""
        return f"{done / elapsed:.1f}/s, {time_text((total - done) * elapsed / done)} left"


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()
