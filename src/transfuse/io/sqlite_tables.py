"""SQLite files of one table, which many processes read and write at once."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from transfuse.io.files import write_errors

WAIT_S = 60.0
"""How long to wait for another process that is writing."""


def make_folder(path: Path) -> None:
    """Make the folder of a file where it is missing; raises RunFolderError where that cannot be."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def open_table(
    path: Path, create: str, version: int, refusal: Callable[[int], Exception]
) -> sqlite3.Connection:
    """Open a file of one table, or make it; write-ahead logged, every statement its own commit.

    Args:
        path: in a folder that is there.
        create: the statement that makes the table where it is missing.
        version: of the table.
        refusal: what to raise where the file is another database, by that one's version.

    Returns:
        The open database.

    Raises:
        sqlite3.Error: the file is damaged, or cannot be opened.
    """
    database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    try:
        _prepare(database, create, version, refusal)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(
    database: sqlite3.Connection, create: str, version: int, refusal: Callable[[int], Exception]
) -> None:
    # The change to WAL does not wait for others by itself.
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as err:
            if "locked" not in str(err) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    # A killed process loses nothing under WAL; only a power cut could take what was written last.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("BEGIN IMMEDIATE")
    with closing(database.execute("PRAGMA user_version")) as versions:
        found = int(versions.fetchone()[0])
    n_tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if found != version and (found or n_tables):
        raise refusal(found)
    database.execute(create)
    database.execute(f"PRAGMA user_version = {version}")
    database.execute("COMMIT")
