"""The download of an archive, which goes on where an earlier one stopped and never leaves a wrong file behind."""

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
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lowcost.data.catalogue import Entry, by_hand

if TYPE_CHECKING:
    from rich.console import Console

ANSWER_SECONDS = 1.5  # in which the host must answer, the look-up of its name included
STALL_SECONDS = 30.0  # without a single byte, after which a connection counts as broken
CHUNK = 2**18
PORTS = {"http": 80, "https": 443}


def download(entry: Entry, folder: str | PathLike[str], console: "Console | None" = None) -> Path:
    """The archive of a data set, fetched from where it is published, checked and put into a folder.

    Until it is complete and checked it is called <filename>.part. Whatever stops the download, Ctrl-C included, leaves
    that file, and the next call fetches the rest.

    Args:
        entry: the data set.
        folder: where to put the archive; made if missing.
        console: where a progress bar is drawn if it is a terminal; stderr if None.

    Returns:
        The path of the archive, folder/filename.

    Raises:
        ConnectionError: the host does not answer, which is known in less than two seconds.
        OSError: the connection broke or stalled, the server refuses, the folder cannot be written, or
            <filename>.part is a link.
        ValueError: what came is not the archive that the entry describes, and was removed; or its URL is not http(s).
    """
    path = Path(folder) / entry.filename
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():
        raise OSError(f"{part} must be a partial download, got a link; remove it")
    have = part.stat().st_size if part.exists() else 0
    if have < entry.size:
        _check_that_host_answers(entry, path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        have = _fetch(entry, part, have, console)
    try:
        with part.open("rb+") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if have == entry.size and sha256 == entry.sha256:
            return part.replace(path)
    except FileNotFoundError:
        if path.exists():
            return path  # of two processes at once the other was faster
        raise
    part.unlink(missing_ok=True)
    raise ValueError(
        f"{entry.url}: expected {entry.size:,} bytes with sha256 {entry.sha256}, got {have:,} bytes with {sha256}, "
        f"which are removed; run it again, or {by_hand(entry, path.parent)}"
    )


def _check_that_host_answers(entry: Entry, folder: Path) -> None:
    """Raises ConnectionError in time where there is no network: what is asked to connect may otherwise take minutes."""
    url = urlsplit(entry.url)
    if url.scheme not in PORTS:
        raise ValueError(f"{entry.name}: expected a URL that begins with http:// or https://, got {entry.url}")
    asked, proxy = url, urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.netloc):
        asked = urlsplit(proxy if "://" in proxy else f"//{proxy}")

    answer: Future[None] = Future()

    def ask() -> None:
        try:
            # Of several addresses the first may be dead.
            socket.create_connection((asked.hostname, asked.port or PORTS[url.scheme]), ANSWER_SECONDS / 2).close()
            answer.set_result(None)
        except Exception as error:  # a name that cannot be one raises UnicodeError
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # the look-up of a name knows no time limit
    try:
        answer.result(ANSWER_SECONDS)
    except Exception as error:
        host = asked.hostname if asked is url else f"{asked.hostname}, the proxy for {url.hostname},"
        reason = str(error) or f"waited {ANSWER_SECONDS} s"
        raise ConnectionError(f"{host} does not answer ({reason}); {by_hand(entry, folder)}") from error


def _fetch(entry: Entry, part: Path, have: int, console: "Console | None") -> int:
    """Appends to the first `have` bytes what is missing, and returns how many bytes there are now."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = console or Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    request = urllib.request.Request(entry.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        # An opener of its own: the one of urlopen keeps the proxies of its first use.
        with urllib.request.build_opener().open(request, timeout=STALL_SECONDS) as response, bar:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                have = 0
            task = bar.add_task(entry.filename, total=entry.size, completed=have)
            part.touch()
            with part.open("rb+") as file:  # nothing cut off or appended: two processes at once write the same
                file.seek(have)
                while have <= entry.size and (chunk := response.read1(CHUNK)):
                    file.write(chunk)
                    have += len(chunk)
                    bar.update(task, completed=have)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)  # the server's file is shorter: it would say so for ever
            raise OSError(f"{entry.url}: the server says {error}; {by_hand(entry, part.parent)}") from error
    except (OSError, http.client.HTTPException) as error:
        hint = f"run it again, it goes on from {part}" if part.exists() else by_hand(entry, part.parent)
        raise OSError(f"{entry.url}: the download stopped ({error}); {hint}") from error
    if have < entry.size:
        reason = f"the connection ended after {have:,} of {entry.size:,} bytes"
        raise OSError(f"{entry.url}: {reason}; run it again, it goes on from {part}")
    return have
