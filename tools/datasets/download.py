"""Download the data sets of a stream that torchvision can: `python -m tools.datasets.download STREAM`.

torchvision says where the files are, which checksums they have and how they are unpacked; only how a file
comes over the network is done here, so that what was interrupted goes on where it stopped. Of the others, a
line each says what to do.
"""

import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.vision import torchvision
from lib.streams import list_tasks
from lib.streams.nevis import datasets_folder
from lib.streams.torchvision_sets import LOADERS, PARTS, how_to_get

TRIES, PAUSE = 5, 2.0  # connections that broke before one gives up, and the seconds between them
TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 16


class Broken(urllib.error.URLError):
    """A connection that ended before the file did."""


def fetch(url: str, file: Path) -> None:
    """Download `url` to `file`, going on from what an earlier call left in `file`.part.

    Raises URLError where it cannot be had, after TRIES broken connections.
    """
    part = file.with_name(f"{file.name}.part")
    for tried in range(1, TRIES + 1):
        try:
            _fetch_on(url, part)
            os.replace(part, file)
            return
        except (Broken, TimeoutError, ConnectionError, http.client.HTTPException):
            if tried == TRIES:
                raise
            time.sleep(PAUSE)


def _fetch_on(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`."""
    had = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "python", "Range": f"bytes={had}-"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not had:  # 416: there is nothing behind what is here
            raise
        if error.headers.get("Content-Range") != f"bytes */{had}":
            part.unlink()  # it is longer than the file: of another one
            raise Broken("the file has changed") from error
        return
    with response:
        if response.headers.get("Content-Range", "").startswith(f"bytes {had}-"):
            mode = "ab"
        else:  # a server that gives files from their beginning alone
            mode, had = "wb", 0
        total = had + response.length if response.length is not None else None
        name = part.stem.split("-", 1)[-1][:40]
        with part.open(mode) as out, tqdm(total=total, initial=had, unit="B", unit_scale=True, desc=name) as bar:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise Broken(f"it ended after {part.stat().st_size:,} of {total:,} bytes")


@contextmanager
def _torchvision_fetches_to(folder: Path) -> Iterator[list[Path]]:
    """Let torchvision get files by `fetch`, by way of `folder`; gives the list of those that it asked for."""
    asked: list[Path] = []

    def retrieve(url: str, filename: str, **_) -> None:
        # torchvision tries http where https fails: the same file.
        number = hashlib.sha256(url.partition("://")[2].encode()).hexdigest()[:8]
        kept = folder / f"{number}-{Path(filename).name}"
        asked.append(kept)
        if not kept.exists():
            fetch(url, kept)
        Path(filename).unlink(missing_ok=True)
        os.link(kept, filename)

    folder.mkdir(parents=True, exist_ok=True)
    utils = torchvision.datasets.utils
    original, utils._urlretrieve = utils._urlretrieve, retrieve
    # torchvision unpacks what an archive asks for; not every archive of its has a checksum.
    unpack = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield asked
    finally:
        utils._urlretrieve = original
        tarfile.TarFile.extraction_filter = unpack


def download(name: str, root: Path) -> None:
    """Get torchvision's data set `name` to `root`, all or nothing.

    Raises UserError where that fails; what came stays in a folder beside, and a second call goes on.
    """
    row = LOADERS[name]
    downloads, unpacked = root / f".{name}-downloads", root / f".{name}-unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        unpacked.mkdir(parents=True)
        with _torchvision_fetches_to(downloads) as asked:
            try:
                for arguments in PARTS[row.parts].values():
                    loader = getattr(torchvision.datasets, row.loader or name)
                    loader(str(unpacked), download=True, **row.fixed, **arguments)
            except RuntimeError:  # torchvision's, for a wrong checksum
                for file in asked[-1:]:
                    file.unlink(missing_ok=True)
                raise
        for entry in unpacked.iterdir():
            shutil.rmtree(root / entry.name, ignore_errors=True)
            entry.rename(root / entry.name)
        shutil.rmtree(downloads)
    except Exception as error:  # each loader has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} could not be downloaded ({reason}): run the command again to go on.") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        if downloads.is_dir() and not any(downloads.iterdir()):
            downloads.rmdir()


def download_stream(stream: str) -> list[str]:
    """Get what torchvision can of the stream's tasks that are not here; say a line of each of the others."""
    tasks, root = list_tasks(stream), datasets_folder() / "torchvision"
    said = []
    for name, how in tasks[~tasks["available"]].drop_duplicates("name").set_index("name")["how"].items():
        # What is said of a task is the call of the loader.
        loaders = [loader for loader in LOADERS if LOADERS[loader].downloads and how_to_get(loader, root) in how]
        try:
            for loader in loaders:
                download(loader, root)
            said.append(f"{name}: {'downloaded' if loaders else how}")
        except UserError as error:
            said.append(f"{name}: {error} Else: {how}")
    return said


if __name__ == "__main__":
    with exit_with_one_sentence():
        if len(sys.argv) != 2:
            raise UserError(
                "Usage: python -m tools.datasets.download STREAM, such as nevis/short or the path of a stream.yaml"
            )
        for line in download_stream(sys.argv[1]):
            print(line)
