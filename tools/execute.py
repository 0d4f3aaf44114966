"""Execute a notebook with parameters, all or nothing: `python -m tools.execute NOTEBOOK OUTPUT [JSON]`.

papermill alone accepts a misspelt parameter with a warning, takes sys.exit(0) in a cell for success, and
leaves half-executed notebooks that look finished.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import atomic_path
from lib.common.paths import ROOT

LONGEST_TEMPORARY = 82  # bytes of a folder's name: a socket in it may have 107, and 103 on macOS


def execute(notebook: Path, output: Path, parameters: dict, label: str) -> None:
    """Run `notebook` with `parameters` and write it to `output` when every cell has completed.

    The kernel is the interpreter that runs this, whatever is installed under the kernel's name, and reads no
    IPython profile of the user's. Progress that the notebook reports is printed, each line after `label`.
    A notebook whose arms the profile lacks (MissingArms) ends where it finds that, and it is said.
    Raises UserError for a parameter that the notebook does not have, or with the last line of the error when
    a cell fails.
    """
    _check(notebook, parameters)
    # IPC sockets in a folder of their own: no TCP port to race for, and kernels side by side keep apart.
    with (
        atomic_path(output) as temporary,
        tempfile.TemporaryDirectory(prefix="kernel-", dir=_short_folder()) as own,
        _followed_progress(label) as progress_file,
    ):
        variables = {
            "PROGRESS_FILE": str(progress_file),
            "IPYTHONDIR": f"{own}/ipython",
            "PYTHONUTF8": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        try:
            executed = papermill.execute_notebook(
                str(notebook),
                str(temporary),
                parameters,
                progress_bar=False,
                cwd=str(notebook.parent),
                kernel_name="python3",
                kernel_manager_class=_kernel_manager(variables),
                config=Config(KernelManager={"transport": "ipc", "ip": f"{own}/kernel"}),
                # A kernel is interrupted before it is ended, which some report as an error.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            if error.ename == "MissingArms":
                print(f"{label}: left out. {error.evalue}", flush=True)
                return
            kind = "" if error.ename == "UserError" else f"{error.ename}: "
            raise UserError(f"{kind}{error.evalue}") from error
        except DeadKernelError as error:
            raise UserError(f"{notebook.name}: its kernel died, perhaps for want of memory. Run again.") from error
        unfinished = [
            i
            for i, cell in enumerate(executed.cells)
            if cell.cell_type == "code" and cell.source and cell.metadata.papermill.status != "completed"
        ]
        if unfinished:
            raise UserError(f"{notebook.name} stopped before cell {unfinished[0]} completed: run it in JupyterLab.")


def _check(notebook: Path, parameters: dict) -> None:
    """Raise UserError unless `notebook` is one, and has all `parameters`."""
    try:
        nbformat.read(notebook, as_version=4)
    except FileNotFoundError as error:
        raise UserError(
            f"{notebook} does not exist: expected a notebook, such as notebooks/experiment.ipynb."
        ) from error
    except Exception as error:  # nbformat lets through what JSON, decoding and its own reader raise
        raise UserError(f"{notebook} cannot be read as a notebook: {error}.") from error
    known = papermill.inspect_notebook(str(notebook))
    if unknown := sorted(parameters.keys() - known.keys()):
        raise UserError(
            f"{notebook.name} has no parameter {', '.join(map(repr, unknown))}: expected some of {', '.join(known)}."
        )


def _kernel_manager(variables: dict[str, str]) -> type[AsyncKernelManager]:
    """Starts the interpreter that runs this as a kernel, with `variables` in its environment."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=argv, display_name="Python 3", language="python", env=variables)
    return type("ThisInterpreter", (AsyncKernelManager,), {"kernel_spec": spec})


def _short_folder() -> str:
    """A folder for temporary files whose name leaves room for that of a socket."""
    for folder in (os.path.abspath(tempfile.gettempdir()), "/tmp"):
        if len(os.fsencode(folder)) <= LONGEST_TEMPORARY and os.access(folder, os.W_OK):
            return folder
    raise UserError(
        f"The folder for temporary files, {tempfile.gettempdir()}, has too long a name for a kernel's "
        f"sockets: expected at most {LONGEST_TEMPORARY} bytes. Give another in TMPDIR."
    )


@contextmanager
def _followed_progress(label: str) -> Iterator[Path]:
    """A file, and a thread that prints what lib.common.progress.report writes there in another process."""
    with tempfile.TemporaryDirectory(prefix="progress-") as folder:
        file, done = Path(folder).resolve() / "lines", threading.Event()
        file.touch()
        thread = threading.Thread(target=_follow, args=(file, label, done), daemon=True)
        thread.start()
        try:
            yield file
        finally:
            done.set()
            thread.join()


def _follow(file: Path, label: str, done: threading.Event) -> None:
    with file.open(encoding="utf-8", errors="replace") as lines:
        finished = False
        while not finished:
            finished = done.wait(0.2)
            for line in lines:
                print(f"{label}: {line}", end="", file=sys.stderr, flush=True)


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent` is killed: it would go on beside its successor."""
    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before
            sys.exit(1)


def main(arguments: list[str]) -> None:
    if parent := os.environ.get("END_WITH_PARENT"):
        _end_with_parent(int(parent))
    if len(arguments) not in (2, 3):
        raise UserError("Usage: python -m tools.execute NOTEBOOK OUTPUT [PARAMETERS.json]")
    notebook, output = Path(arguments[0]), Path(arguments[1])
    try:
        parameters = json.loads(Path(arguments[2]).read_bytes()) if len(arguments) == 3 else {}
        if not isinstance(parameters, dict):
            raise ValueError("expected an object of names and values")
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments[2]} cannot be read as JSON parameters: {error}.") from error
    started = time.monotonic()
    execute(notebook, output, parameters, output.stem)
    print(f"{output.stem}: done in {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:])
