"""Downloads an archive: resumes where an earlier download stopped, and never leaves a wrong file behind."""

import hashlib
import http
import http.client
import os
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

from lowcost.data.catalogue import Entry, by_hand

ANSWER_SECONDS = 1.5
"""The time within which a host must answer, name look-up included."""
STALL_SECONDS = 30.0
"""The time without a byte after which a connection counts as broken."""
CHUNK_BYTES = 2**18
PORTS = {"http": 80, "https": 443}


def download(entry: Entry, folder: str | PathLike[str]) -> Path:
    """Downloads the archive of a data set into a folder, checks it, and returns its path.

    The file is called <filename>.part until it is complete and checked. When a download stops for any reason, Ctrl-C
    included, that file stays, and the next call fetches the rest. A terminal at stderr shows a progress bar.

    Args:
        entry: the data set.
        folder: the folder; made if missing.

    Raises:
        ConnectionError: the host does not answer within two seconds.
        OSError: the connection broke or stalled, the server refused, the folder cannot be written, or
            <filename>.part is a link.
        ValueError: the server sent another file than the archive, which was removed.
    """
    path = Path(folder) / entry.filename
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():
        raise OSError(f"{part} must be a partial download, got a link; remove it")
    size = part.stat().st_size if part.exists() else 0
    if size < entry.size:
        _check_that_host_answers(entry, path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = _fetch(entry, part, size)
    try:
        with part.open("rb+") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if size == entry.size and sha256 == entry.sha256:
            return part.replace(path)
    except FileNotFoundError:
        if path.exists():
            return path  # another process finished the same download first
        raise
    part.unlink(missing_ok=True)
    expected = f"{entry.url} must give {entry.size:,} bytes with sha256 {entry.sha256}"
    remedy = f"run it again, or {by_hand(entry, path.parent)}"
    raise ValueError(f"{expected}, got {size:,} bytes with {sha256}, now removed; {remedy}")


def _check_that_host_answers(entry: Entry, folder: Path) -> None:
    """Raises ConnectionError within `ANSWER_SECONDS` where there is no network; connecting may take minutes to fail."""
    url = urlsplit(entry.url)
    host, proxy = url, urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.netloc):
        host = urlsplit(proxy if "://" in proxy else f"//{proxy}")

    answer: Future[None] = Future()

    def connect() -> None:
        try:
            # Half of the time, since the first of several addresses may be dead.
            socket.create_connection((host.hostname, host.port or PORTS[url.scheme]), ANSWER_SECONDS / 2).close()
            answer.set_result(None)
        except Exception as error:  # an impossible host name raises UnicodeError
            answer.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()  # the look-up of a name has no time limit
    try:
        answer.result(ANSWER_SECONDS)
    except Exception as error:
        name = host.hostname if host is url else f"{host.hostname}, the proxy for {url.hostname},"
        reason = str(error) or f"waited {ANSWER_SECONDS} s"
        raise ConnectionError(f"{name} does not answer ({reason}); {by_hand(entry, folder)}") from error


def _fetch(entry: Entry, part: Path, size: int) -> int:
    """Appends the missing bytes to a file of `size` bytes, and returns its new size."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    request = urllib.request.Request(entry.url, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        # A new opener, since urlopen keeps the proxies of its first use.
        with urllib.request.build_opener().open(request, timeout=STALL_SECONDS) as response, bar:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                size = 0
            task = bar.add_task(entry.filename, total=entry.size, completed=size)
            part.touch()
            with part.open("rb+") as file:  # no truncation and no append: two processes may write the same bytes
                file.seek(size)
                while size <= entry.size and (chunk := response.read1(CHUNK_BYTES)):
                    size += file.write(chunk)
                    bar.update(task, completed=size)
        if size < entry.size:
            raise OSError(f"the connection ended after {size:,} of {entry.size:,} bytes")
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)  # the server's file is shorter, so each request would fail
            raise OSError(f"{entry.url}: the server refuses ({error}); {by_hand(entry, part.parent)}") from error
    except (OSError, http.client.HTTPException) as error:
        remedy = f"run it again to resume from {part}" if part.exists() else by_hand(entry, part.parent)
        raise OSError(f"{entry.url}: the download stopped ({error}); {remedy}") from error
    return size
