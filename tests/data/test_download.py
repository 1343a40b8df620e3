"""Tests downloads from correct and faulty servers on the loopback interface."""

import hashlib
import http.client
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lowcost.data import download as module
from lowcost.data.catalogue import ENTRIES
from lowcost.data.download import download

CONTENT = os.urandom(1_000_000)
HALF = len(CONTENT) // 2
ENTRY = replace(ENTRIES["cifar10"], size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


class Server:
    """Serves `content`, cut off or paused after a given number of bytes; records requests and the bytes sent."""

    def __init__(self):
        self.content, self.ranges, self.declares_size = CONTENT, True, True
        self.status = self.cut = None
        self.held = []  # for each of the next answers: the bytes before a pause, and the event that ends it
        self.asked, self.sent = [], []
        self.ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def entry(self):
        return replace(ENTRY, url=f"{self.origin}/data/{ENTRY.filename}")

    def answer(self, handler):
        wanted = handler.headers["Range"]
        self.asked.append((handler.path, wanted))
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        body = self.content[first:]
        status = self.status or (206 if first else 200)
        if first and not body:
            status = 416
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        if self.declares_size:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body[: self.cut]
        self.sent.append(len(body))
        if self.held:
            size, event = self.held.pop(0)
            handler.wfile.write(body[:size])
            event.wait(20)
            body = body[size:]
        handler.wfile.write(body)

    def close(self):
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr("urllib.request.getproxies", module.urllib.request.getproxies_environment)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "a" / "b"


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


PART = f"{ENTRY.filename}.part"


def begin(folder, content=CONTENT[:HALF]):
    folder.mkdir(parents=True)
    (folder / PART).write_bytes(content)


def test_a_complete_download(server, folder, monkeypatch):
    synchronised = []
    monkeypatch.setattr(os, "fsync", lambda _: synchronised.append(names(folder)))
    path = download(server.entry, str(folder))
    assert synchronised == [[PART]]
    assert path == folder / ENTRY.filename
    assert path.read_bytes() == CONTENT
    assert names(folder) == [ENTRY.filename]
    assert server.asked == [(f"/data/{ENTRY.filename}", None)]


def test_after_a_cut_connection_the_rest_is_fetched(server, folder):
    server.cut = HALF
    with pytest.raises(OSError, match=r"run it again to resume from .*\.part"):
        download(server.entry, folder)
    assert names(folder) == [PART]
    server.cut = None
    assert download(server.entry, folder).read_bytes() == CONTENT
    assert names(folder) == [ENTRY.filename]
    assert [asked[1] for asked in server.asked] == [None, f"bytes={HALF}-"]
    assert server.sent == [HALF, len(CONTENT) - HALF]


def test_a_planted_link_is_not_written_to(server, folder, tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    folder.mkdir(parents=True)
    (folder / PART).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"part must be a partial download, got a link; remove it"):
        download(server.entry, folder)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_server_that_knows_no_ranges_begins_anew(server, folder):
    begin(folder)
    server.ranges = False
    assert download(server.entry, folder).read_bytes() == CONTENT
    assert server.asked[0][1] == f"bytes={HALF}-"
    assert server.sent == [len(CONTENT)]


def test_a_complete_part_needs_no_network(folder):
    begin(folder, CONTENT)
    assert download(replace(ENTRY, url=f"http://archive.invalid/{ENTRY.filename}"), folder).read_bytes() == CONTENT


def test_an_archive_that_is_there_is_replaced_only_by_a_good_one(server, folder):
    folder.mkdir(parents=True)
    (folder / ENTRY.filename).write_text("old")
    server.cut = HALF
    with pytest.raises(OSError, match="run it again"):
        download(server.entry, folder)
    assert (folder / ENTRY.filename).read_text() == "old"
    server.cut = None
    assert download(server.entry, folder).read_bytes() == CONTENT


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    "content",
    [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT + b"\0", 50 * CONTENT],
    ids=["bit", "long", "very long"],
)
def test_other_content_is_removed(server, folder, content, declared):
    server.content, server.declares_size = content, declared
    with pytest.raises(ValueError, match="now removed; run it again, or fetch it yourself") as caught:
        download(server.entry, folder)
    assert f"must give {len(CONTENT):,} bytes with sha256 {ENTRY.sha256}, got " in str(caught.value)
    assert names(folder) == []


def test_what_is_too_long_is_not_read_to_its_end(server, folder):
    server.content = 50 * CONTENT
    with pytest.raises(ValueError, match=r"got 1,\d\d\d,\d\d\d bytes"):
        download(server.entry, folder)


def test_a_wrong_beginning_is_removed_too(server, folder):
    begin(folder, bytes(HALF))
    with pytest.raises(ValueError, match=rf"got {len(CONTENT):,} bytes"):
        download(server.entry, folder)
    assert names(folder) == []
    assert download(server.entry, folder).read_bytes() == CONTENT


def test_a_shorter_file_on_the_server_does_not_block_for_ever(server, folder):
    server.content = CONTENT[:HALF]
    with pytest.raises(OSError, match="run it again"):
        download(server.entry, folder)
    with pytest.raises(OSError, match="416"):
        download(server.entry, folder)
    assert names(folder) == []


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_keeps_what_there_is(server, folder, status):
    begin(folder)
    server.status = status
    with pytest.raises(
        OSError, match=rf"the server refuses \(HTTP Error {status}.*fetch it yourself.*digits"
    ) as caught:
        download(server.entry, folder)
    assert server.entry.url in str(caught.value)
    assert (folder / PART).read_bytes() == CONTENT[:HALF]


def test_a_stalled_connection_ends_and_can_be_continued(server, folder, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 0.2)
    server.held = [(HALF, server.ended)]
    with pytest.raises(OSError, match=r"the download stopped \(timed out\); run it again to resume from .*\.part"):
        download(server.entry, folder)
    monkeypatch.undo()
    assert download(server.entry, folder).read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={HALF}-"


def test_what_is_no_http_at_all(folder):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            for _ in range(2):  # the check, and the request
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"220 a mail server\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/{ENTRY.filename}"
        with pytest.raises(OSError, match="the download stopped"):
            download(replace(ENTRY, url=url), folder)


def test_ctrl_c_leaves_what_came(server, folder, monkeypatch):
    read = http.client.HTTPResponse.read1
    came = []

    def interrupted(response, n):
        if came:
            raise KeyboardInterrupt
        came.append(read(response, n))
        return came[0]

    with monkeypatch.context() as patch:
        patch.setattr(http.client.HTTPResponse, "read1", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(server.entry, folder)
    assert (folder / PART).read_bytes() == came[0]
    assert download(server.entry, folder).read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={len(came[0])}-"


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("faster", [0, 1])
def test_two_at_once(server, folder, ranges, faster):
    """The second download starts while the first is half done; both write to the same file, and both succeed."""
    events = threading.Event(), threading.Event()
    server.ranges, server.held = ranges, [(HALF, events[0]), (HALF // 2, events[1])]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(download, server.entry, folder)
        wait_until(lambda: (folder / PART).exists() and (folder / PART).stat().st_size > HALF // 2)
        both = first, pool.submit(download, server.entry, folder)
        wait_until(lambda: not server.held)
        for i in (faster, 1 - faster):
            events[i].set()
            assert both[i].result(20).read_bytes() == CONTENT
    assert names(folder) == [ENTRY.filename]
    assert server.asked[1][1].startswith("bytes=")


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def unanswered(entry, folder, host):
    """Checks that ConnectionError comes at once with all details and nothing is created; returns the message."""
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ANSWER_SECONDS", 0.3)
        with pytest.raises(ConnectionError) as caught:
            download(entry, folder)
    assert time.monotonic() - start < 2
    message = str(caught.value)
    for part in (host, "does not answer", entry.url, entry.sha256, f"put it into {folder}", "digits needs no file"):
        assert part in message
    assert "\n" not in message
    assert not folder.parent.exists()
    return message


def test_a_closed_port(folder):
    unanswered(replace(ENTRY, url=f"http://127.0.0.1:{closed_port()}/{ENTRY.filename}"), folder, "127.0.0.1")


@pytest.fixture
def resolver(monkeypatch):
    """Installs a resolver that hangs until the test ends; yields the names that it was asked for."""
    asked, ended = [], threading.Event()

    def hang(host, *_, **__):
        asked.append(host)
        ended.wait(20)
        raise socket.gaierror("the test has ended")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield asked
    ended.set()


def test_a_resolver_that_hangs(folder, resolver):
    before = set(threading.enumerate())
    unanswered(replace(ENTRY, url="https://archive.invalid/x.tar.gz"), folder, "archive.invalid")
    assert resolver == ["archive.invalid"]
    (hanging,) = set(threading.enumerate()) - before
    assert hanging.daemon  # so that the program can end


def test_a_name_that_is_none(folder):
    unanswered(replace(ENTRY, url=f"http://{'x' * 64}.invalid/x.tar.gz"), folder, "x" * 64)


def test_the_proxy_is_asked_and_not_the_host(server, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", server.origin)
    entry = replace(ENTRY, url=f"http://archive.invalid/{ENTRY.filename}")
    assert download(entry, folder).read_bytes() == CONTENT
    assert server.asked == [(entry.url, None)]


@pytest.mark.parametrize("scheme", ["", "http://", "http://user:secret@"])
def test_a_proxy_that_does_not_answer(folder, monkeypatch, scheme):
    monkeypatch.setenv("https_proxy", f"{scheme}127.0.0.1:{closed_port()}")
    entry = replace(ENTRY, url=f"https://archive.invalid/{ENTRY.filename}")
    message = unanswered(entry, folder, "127.0.0.1, the proxy for archive.invalid,")
    assert "secret" not in message


def test_a_host_that_needs_no_proxy(server, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert download(server.entry, folder).read_bytes() == CONTENT


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_the_port_that_is_asked(folder, monkeypatch, scheme, port):
    asked = []

    def connect(address, _):
        asked.append(address)
        raise OSError("not here")

    monkeypatch.setattr(socket, "create_connection", connect)
    unanswered(replace(ENTRY, url=f"{scheme}://archive.invalid/x.tar.gz"), folder, "archive.invalid")
    assert asked == [("archive.invalid", port)]


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        download(server.entry, tmp_path / "file" / "sub")
    assert not server.sent


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_on_a_terminal_alone(server, folder, terminal, monkeypatch, capfd):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich then assumes a terminal
    begin(folder)
    download(server.entry, folder)
    out, err = capfd.readouterr()
    assert (ENTRY.filename in err) == terminal
    assert terminal or not err
    assert not out
