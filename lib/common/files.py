"""Write files so that nobody ever sees half of one."""

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lib.common.errors import UserError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when not.

    Raises UserError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EFBIG,
        ):
            raise
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Expected a writable folder with free "
            "space; what was finished before is kept. Free space or change the folder, and run again."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def save_tensors(tensors: dict[str, Tensor], path: Path | str, about: dict[str, str] | None = None) -> None:
    """Write `tensors` as safetensors, all or nothing, `about` as metadata. Errors as of `atomic_path`."""
    contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, about)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # nothing else of it says which it was
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
