"""Write files so that nobody ever sees half of one."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lib.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Kinds of OSError that say: not here, or not so much.
_REFUSALS = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EEXIST ENOTDIR EISDIR ENAMETOOLONG"
_NOT_WRITABLE = {getattr(errno, name) for name in _REFUSALS.split()}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when not.

    Raises UserError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # Not tempfile's: that one's files are for their owner alone, whatever the umask says.
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Expected a writable folder with free "
            "space; what was finished before is kept. Free space or change the folder, and run again."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(file: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock `file`: of two processes, the second waits for the first, also where one is killed.

    Raises UserError, which ends with what to do `otherwise`, when the folder cannot be written.
    """
    from filelock import FileLock  # here, so that what only looks at stamps needs no package

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file).acquire()
    except (OSError, NotImplementedError) as error:  # the second where the file system has no locks
        raise UserError(
            f"Cannot write to {file.parent}: {getattr(error, 'strerror', None) or error}. Expected a "
            f"writable folder that files can be locked in: {otherwise}."
        ) from error
    with lock:
        yield


def renew(path: Path, content: bytes) -> None:
    """Write `content`, all or nothing, unless it is there already: times of files tell what was renewed."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, all or nothing."""
    renew(path, f"{json.dumps(content, indent=1)}\n".encode())


def save_tensors(tensors: "dict[str, Tensor]", path: Path | str, about: dict[str, str] | None = None) -> None:
    """Write `tensors` as safetensors, all or nothing, `about` as metadata. Errors as of `atomic_path`."""
    from safetensors.torch import save  # here, as above

    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(contiguous, about))
