"""What `transfuse index serve` is told, and whether it may and can listen there."""

import errno
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transfuse.errors import RecipeError
from transfuse.knowledge.service_keys import is_readable_by_others, read_keys

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `transfuse index serve` was told."""

    path: str
    """An index folder, or a folder of them."""
    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes a free one."""
    api_key_file: str | None = None
    no_key: bool = False
    """Whether others than this machine may search without a key."""
    n_workers: int = 1
    reranker: str | None = None
    """A cross-encoder that text searches are scored again by; none has it done by exact cosines."""
    trust_remote_code: bool = False
    """Whether Python code that comes with an embedding model may run."""


def check_settings(settings: ServeSettings, warn: Say) -> None:
    """Refuse what would fail later, or let in who should stay out.

    Args:
        settings: what the command was told.
        warn: told of a key file that others can read.

    Raises:
        RecipeError: the key file or the number of workers is wrong, or others may search without a key unmeant.
    """
    if settings.n_workers < 1:
        raise RecipeError(f"--workers: expected at least 1, got {settings.n_workers}.")
    if settings.api_key_file is not None:
        if settings.no_key:
            raise RecipeError("--no-key: expected either this or --api-key-file, got both.")
        path = Path(settings.api_key_file)
        read_keys(path)
        if is_readable_by_others(path):
            warn(f"Warning: {path} can be read by other users; close it with `chmod 600 {path}`.")
    elif not is_loopback(settings.host) and not settings.no_key:
        raise RecipeError(
            f"--host {settings.host}: expected --api-key-file, since others than this machine can reach it; or "
            "--no-key, to let everybody search who can."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of that name."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the address from now on; requests that come before the service is ready wait.

    Args:
        host: a name or an address of this machine.
        port: 0 takes a free one.

    Returns:
        The socket, listening.

    Raises:
        RecipeError: this machine has no such address, or the port cannot be had.
    """
    try:
        if not host:
            raise OSError(errno.EADDRNOTAVAIL, "it is empty")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as err:
        raise RecipeError(f"--host {host!r}: expected an address of this machine, got '{err}'.") from err
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as err:
        listening.close()
        if err.errno == errno.EADDRINUSE:
            raise RecipeError(
                f"--port {port}: is in use on {host}; end the other program, or choose another --port."
            ) from err
        if err.errno == errno.EACCES:
            raise RecipeError(f"--port {port}: is reserved for the system; choose one from 1024 on.") from err
        raise RecipeError(
            f"--host {host!r}: expected an address of this machine, got '{err.strerror}'."
        ) from err
    return listening
