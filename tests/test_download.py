"""tools.datasets.download, against a server on this machine: resumed, checked, refused in a sentence."""

import gzip
import hashlib
import http.server
import io
import re
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error

import numpy as np
import pytest

from lib.common.errors import UserError
from lib.common.paths import ROOT
from lib.common.vision import torchvision
from lib.streams import list_tasks
from lib.streams.torchvision_sets import how_to_get
from tools.datasets import download as downloading
from tools.datasets.download import download, download_stream, fetch

RNG = np.random.default_rng(0)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by name. `requests` are the places from which they were asked, by name."""

    def __init__(self, ranges: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, int]] = []
        self.ranges, self.breaks_after, self.slow = ranges, [], 0.0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_) -> None:
        pass  # whoever asked was killed

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, name = self.server, self.path.strip("/")
        asked = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        if asked is None:  # torchvision follows redirections by a request of its own
            self.send_response(200 if name in server.files else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked[1])
        server.requests.append((name, start))
        if name not in server.files:
            self.send_error(404)
            return
        content = server.files[name]
        if not server.ranges:
            start = 0
            self.send_response(200)
        elif start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        else:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if server.breaks_after:
            rest = rest[: server.breaks_after.pop(0)]
        for place in range(0, len(rest), 1 << 16):
            self.wfile.write(rest[place : place + (1 << 16)])
            time.sleep(server.slow)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0)
    running = Server()
    yield running
    running.shutdown()


def random_bytes(count: int) -> bytes:
    return RNG.bytes(count)


# --- one file -----------------------------------------------------------------------------------------


def test_a_file_arrives_as_it_is(server, tmp_path):
    for number, content in enumerate([b"a", random_bytes(300_000)]):
        server.files["x"] = content
        fetch(server.url + "x", tmp_path / f"x{number}")
        assert (tmp_path / f"x{number}").read_bytes() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x0", "x1"]


@pytest.mark.parametrize("had", [1, 100_000, 299_999, 300_000])
def test_what_is_here_is_not_fetched_again(server, tmp_path, had):
    content = server.files["x"] = random_bytes(300_000)
    (tmp_path / "x.part").write_bytes(content[:had])
    fetch(server.url + "x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content and server.requests == [("x", had)]


def test_broken_connections_go_on_where_they_stopped(server, tmp_path):
    content = server.files["x"] = random_bytes(300_000)
    server.breaks_after = [100_000, 50_000]
    fetch(server.url + "x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    assert [start for _, start in server.requests] == [0, 100_000, 150_000]


def test_too_many_broken_connections_are_an_error_and_what_came_is_kept(server, tmp_path):
    server.files["x"] = random_bytes(300_000)
    server.breaks_after = [1_000] * downloading.TRIES
    with pytest.raises(urllib.error.URLError, match=r"ended after 5,000 of 300,000 bytes"):
        fetch(server.url + "x", tmp_path / "x")
    assert (tmp_path / "x.part").stat().st_size == 5_000 and not (tmp_path / "x").exists()


def test_a_server_without_ranges_and_a_file_that_grew_shorter_start_anew(tmp_path, server):
    content = server.files["x"] = random_bytes(300_000)
    (tmp_path / "x.part").write_bytes(random_bytes(400_000))
    fetch(server.url + "x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    server.ranges = False
    (tmp_path / "y.part").write_bytes(b"other")
    fetch(server.url + "x", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == content


def test_a_killed_download_goes_on(server, tmp_path):
    content = server.files["x"] = random_bytes(2_000_000)
    server.slow = 0.05
    code = (
        "import pathlib, sys; from tools.datasets.download import fetch; fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, server.url + "x", str(tmp_path / "x")]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    part = tmp_path / "x.part"
    while not (part.exists() and part.stat().st_size > 200_000):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    had = part.stat().st_size
    server.slow = 0
    fetch(server.url + "x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content and server.requests[-1] == ("x", had) and had < 2_000_000


# --- a data set of torchvision's ------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture
def mnist(server, monkeypatch):
    """A small MNIST that torchvision knows to be on the server; gives its images."""
    images = {part: RNG.integers(0, 256, (count, 28, 28), np.uint8) for part, count in (("train", 40), ("t10k", 8))}
    for part, values in images.items():
        server.files[f"{part}-images-idx3-ubyte.gz"] = idx(values)
        server.files[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(len(values), dtype=np.uint8) % 10)
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in server.files.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [server.url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return images


def test_a_data_set_is_downloaded_once_and_readable(server, mnist, tmp_path):
    download("MNIST", tmp_path)
    data = torchvision.datasets.MNIST(str(tmp_path), train=False)
    assert (data.data.numpy() == mnist["t10k"]).all()
    assert sorted(name for name, _ in server.requests) == sorted(server.files)
    assert [file.name for file in tmp_path.iterdir()] == ["MNIST"]


def test_an_interrupted_data_set_goes_on(server, mnist, tmp_path):
    name = "train-images-idx3-ubyte.gz"
    server.breaks_after = [1_000] * downloading.TRIES
    with pytest.raises(UserError, match=r"MNIST could not be downloaded .*again to go on"):
        download("MNIST", tmp_path)
    assert not (tmp_path / "MNIST").exists()
    server.requests.clear()
    download("MNIST", tmp_path)
    assert server.requests[0] == (name, 1_000 * downloading.TRIES)
    assert len(torchvision.datasets.MNIST(str(tmp_path))) == 40


def test_a_wrong_checksum_is_said_and_the_file_is_fetched_anew(server, mnist, tmp_path):
    name = "t10k-images-idx3-ubyte.gz"
    sound, server.files[name] = server.files[name], random_bytes(500)
    with pytest.raises(UserError, match=r"MNIST could not be downloaded \(.*File not found or corrupted"):
        download("MNIST", tmp_path)
    assert not (tmp_path / "MNIST").exists()
    server.files[name] = sound
    server.requests.clear()
    download("MNIST", tmp_path)
    assert [asked for asked, _ in server.requests] == [name, "t10k-labels-idx1-ubyte.gz"]  # the others are here


def test_a_file_that_is_not_on_the_server_is_said(server, mnist, tmp_path):
    del server.files["train-labels-idx1-ubyte.gz"]
    with pytest.raises(UserError, match=r"^MNIST could not be downloaded \(.*\): run the command again"):
        download("MNIST", tmp_path)


def test_an_archive_writes_nothing_outside_its_folder(server, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../outside.txt"))
    server.files["fgvc.tar.gz"] = packed.getvalue()
    monkeypatch.setattr(torchvision.datasets.FGVCAircraft, "_URL", server.url + "fgvc.tar.gz")
    with pytest.raises(UserError, match=r"FGVCAircraft could not be downloaded .*outside the destination"):
        download("FGVCAircraft", tmp_path / "root")
    assert not list(tmp_path.rglob("outside.txt"))
    assert tarfile.TarFile.extraction_filter is None  # as it was


def test_a_full_disk_is_said(server, mnist, tmp_path):
    limit = 4_096  # bytes that a file of this process may have
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"MNIST could not be downloaded .*File too large"):
            download("MNIST", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    download("MNIST", tmp_path)
    assert len(torchvision.datasets.MNIST(str(tmp_path))) == 40


def test_a_stream_s_tasks_are_downloaded_where_they_can_be_and_the_others_said(server, mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("DATASETS", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", server.url + "gone.tar.gz")
    stream = tmp_path / "stream.yaml"
    stream.write_text(
        "name: mine\ntasks:\n"
        '  - {name: digits, source: "torchvision:MNIST", year: 1998}\n'
        '  - {name: things, source: "torchvision:CIFAR10", year: 2009}\n'
        '  - {name: everything, source: "torchvision:ImageNet", year: 2012}\n'
        '  - {name: mine, source: "folder:mine", year: 2020}\n'
    )
    lines = download_stream(str(stream))
    assert lines[0] == "digits: downloaded"
    assert lines[1].startswith("things: CIFAR10 could not be downloaded (") and "404" in lines[1]
    assert lines[1].endswith(f"Else: {how_to_get('CIFAR10', tmp_path / 'torchvision')}")
    assert not (tmp_path / "torchvision/.CIFAR10-downloads").exists()
    assert lines[2].startswith("everything: ") and "which files to put into" in lines[2]
    assert lines[3].startswith("mine: ") and "mine/train/" in lines[3] and not any("\n" in line for line in lines)
    assert list_tasks(str(stream))["available"].tolist() == [True, False, False, False]
    assert [line.split(":")[0] for line in download_stream(str(stream))] == ["things", "everything", "mine"]
