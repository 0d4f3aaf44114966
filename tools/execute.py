"""Execute a notebook with parameters, all or nothing: `python -m tools.execute NOTEBOOK OUTPUT [JSON]`.

papermill alone accepts a misspelt parameter with a warning, takes sys.exit(0) in a cell for success, and
leaves half-executed notebooks that look finished.
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import atomic_path


def execute(notebook: Path, output: Path, parameters: dict, label: str) -> None:
    """Run `notebook` with `parameters` and write it to `output` when every cell has completed.

    Progress that the notebook reports is printed, each line after `label`. Raises UserError for a
    parameter the notebook does not have, or with the last line of the error when a cell fails.
    """
    if not notebook.exists():
        raise UserError(
            f"{notebook} does not exist: expected a notebook, such as notebooks/experiment.ipynb."
        )
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise UserError(
            f"{notebook.name} has no parameter {', '.join(map(repr, unknown))}: expected some of "
            f"{', '.join(known)}."
        )
    # IPC sockets in a folder of their own: no TCP port to race for, and kernels side by side keep apart.
    with (
        atomic_path(output) as temporary,
        tempfile.TemporaryDirectory(prefix="kernel-") as sockets,
        _follow_progress(label),
    ):
        transport = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        try:
            executed = papermill.execute_notebook(
                str(notebook),
                str(temporary),
                parameters,
                progress_bar=False,
                cwd=str(notebook.parent),
                kernel_name="python3",
                config=transport,
                # A kernel is interrupted before it is ended, which some report as an error.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            kind = "" if error.ename == "UserError" else f"{error.ename}: "
            raise UserError(f"{kind}{error.evalue}") from error
        except DeadKernelError as error:
            raise UserError(
                f"{notebook.name}: its kernel died, perhaps for want of memory. Run again."
            ) from error
        unfinished = [
            i
            for i, cell in enumerate(executed.cells)
            if cell.cell_type == "code" and cell.source and cell.metadata.papermill.status != "completed"
        ]
        if unfinished:
            raise UserError(
                f"{notebook.name} stopped before cell {unfinished[0]} completed: run it in JupyterLab."
            )


class _follow_progress:
    """Print what lib.common.progress.report writes in another process, while the block runs."""

    def __init__(self, label: str):
        self.label, self.done = label, threading.Event()

    def __enter__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="progress-")
        os.close(handle)
        self.file = Path(name)
        os.environ["PROGRESS_FILE"] = name
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()
        self.file.unlink(missing_ok=True)
        os.environ.pop("PROGRESS_FILE", None)

    def _follow(self) -> None:
        with self.file.open() as lines:
            finished = False
            while not finished:
                finished = self.done.is_set()
                for line in lines:
                    print(f"{self.label}: {line}", end="", file=sys.stderr, flush=True)
                time.sleep(0.2)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (2, 3):
        raise UserError("Usage: python -m tools.execute NOTEBOOK OUTPUT [PARAMETERS.json]")
    notebook, output = Path(arguments[0]), Path(arguments[1])
    try:
        parameters = json.loads(Path(arguments[2]).read_text()) if len(arguments) == 3 else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments[2]} cannot be read as JSON parameters: {error}.") from error
    started = time.monotonic()
    execute(notebook, output, parameters, output.stem)
    print(f"{output.stem}: done in {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:])
