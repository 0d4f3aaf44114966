"""Notebooks are executed with valid parameters, all or nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lib.common.errors import UserError
from lib.common.paths import ROOT
from tools.execute import execute, main

COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = "number = 1\nflag = True\nrate = 0.5\nitems = [1]\nnothing = 0\ntext = 'a'"


def notebook(folder: Path, *cells: str, name: str = "some.ipynb") -> Path:
    """A notebook whose first code cell is the one with the parameters."""
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    content = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Title"), first, *map(nbformat.v4.new_code_cell, cells)],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
    )
    file = folder / name
    nbformat.write(content, file)
    return file


def printed(output: Path) -> str:
    cells = nbformat.read(output, 4).cells
    return "".join(out.text for cell in cells for out in cell.get("outputs", []) if out.output_type == "stream")


def test_misspelt_parameter_is_refused_before_anything_runs(tmp_path):
    file = notebook(tmp_path, "open('ran', 'w')")
    with pytest.raises(UserError, match="'nubmer'") as error:
        execute(file, tmp_path / "out.ipynb", {"nubmer": 2}, "label")
    assert "number, flag, rate" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["some.ipynb"]


def test_values_keep_their_types(tmp_path):
    values = {"number": 2, "flag": False, "rate": 1e-3, "items": [1, 0.5, "b"], "nothing": None, "text": "1e-3"}
    file = notebook(tmp_path, "print([number, flag, rate, items, nothing, text])")
    execute(file, tmp_path / "new" / "out.ipynb", values, "label")
    assert printed(tmp_path / "new" / "out.ipynb") == f"{list(values.values())}\n"
    assert os.listdir(tmp_path / "new") == ["out.ipynb"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("from lib.common.errors import UserError\nraise UserError('ratio=7: too much.')", "ratio=7: too much."),
        ("import sys; sys.exit(0)", ""),
        ("import os; os._exit(0)", ""),
        ("this is no Python", "SyntaxError"),
    ],
    ids=["error", "user error", "sys.exit(0)", "kernel dies", "syntax"],
)
def test_notebook_that_does_not_complete_leaves_the_old_output(tmp_path, cell, message):
    file = notebook(tmp_path, cell, "print('after')")
    output = tmp_path / "out.ipynb"
    output.write_text("old")
    with pytest.raises(UserError) as error:
        execute(file, output, {}, "label")
    assert str(error.value).startswith(message) and "\n" not in str(error.value).strip()
    assert output.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.ipynb", "some.ipynb"]


def test_progress_is_passed_on_and_stays_out_of_the_notebook(tmp_path, capfd):
    file = notebook(tmp_path, "from lib.common.progress import report\nfor i in range(3):\n    report(f'step {i}')")
    execute(file, tmp_path / "out.ipynb", {}, "arm")
    # Kernels share stderr, and ZeroMQ may write there when one of an earlier test dies: count only our lines.
    lines = [line for line in capfd.readouterr().err.splitlines() if "step" in line]
    assert lines == [f"arm: step {i}" for i in range(3)]
    assert "arm: step" not in (tmp_path / "out.ipynb").read_text()
    assert "PROGRESS_FILE" not in os.environ


def test_notebook_runs_in_its_own_folder(tmp_path):
    (tmp_path / "beside.txt").write_text("found")
    execute(notebook(tmp_path, "print(open('beside.txt').read())"), tmp_path / "out.ipynb", {}, "label")
    assert printed(tmp_path / "out.ipynb") == "found\n"


def test_two_notebooks_at_once_and_the_command_line(tmp_path):
    processes = []
    for number in (3, 4):
        file = notebook(tmp_path, "import time; time.sleep(1); print(number)", name=f"{number}.ipynb")
        parameters = tmp_path / f"{number}.json"
        parameters.write_text(json.dumps({"number": number}))
        command = [sys.executable, "-m", "tools.execute", file, tmp_path / "out" / f"{number}.ipynb", parameters]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for number, process in zip((3, 4), processes, strict=True):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert printed(tmp_path / "out" / f"{number}.ipynb") == f"{number}\n"
        assert f"{number}: done in" in errors


HOSTILE = {
    # Another interpreter under the name python3, and a profile that leaves a name behind.
    "kernel": {"JUPYTER_PATH": "{}/jupyter", "JUPYTER_DATA_DIR": "{}/jupyter", "IPYTHONDIR": "{}/ipython"},
    # Sockets' names may have 107 bytes.
    "long": {"TMPDIR": "{}/" + "t" * 120},
    "relative": {"TMPDIR": "."},
    "umlauts": {"TMPDIR": "{}/ein Ümläut"},
    # Another package called lib, no home, no UTF-8, no patience with warnings.
    "python": {
        "PYTHONPATH": "{}/packages",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONWARNINGS": "error",
        "PROGRESS_FILE": "/nonexistent/file",
        "MPLBACKEND": "QtAgg",
        "JUPYTER_RUNTIME_DIR": "/nonexistent",
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_kernel_is_this_interpreter_with_this_library_whatever_is_set(tmp_path, kind):
    kernel = {"argv": ["/bin/false"], "display_name": "other", "language": "python"}
    texts = {
        "jupyter/kernels/python3/kernel.json": json.dumps(kernel),
        "ipython/profile_default/startup/first.py": "MARK = 1",
        "packages/lib/__init__.py": "raise RuntimeError('another lib')",
        "parameters.json": json.dumps({"text": "größe"}, ensure_ascii=False),
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    variables = {name: text.replace("{}", str(tmp_path)) for name, text in HOSTILE[kind].items()}
    if "TMPDIR" in variables:
        (ROOT / variables["TMPDIR"]).mkdir(exist_ok=True)
    lines = (
        "import sys, lib.common.progress",
        "lib.common.progress.report(text)",
        "print(sys.executable, lib.common.progress.__file__, text, 'MARK' in globals())",
    )
    command = [sys.executable, "-m", "tools.execute", notebook(tmp_path, "\n".join(lines))]
    done = subprocess.run(
        [*command, tmp_path / "out.ipynb", tmp_path / "parameters.json"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = f"{sys.executable} {ROOT}/lib/common/progress.py größe False\n"
    assert printed(tmp_path / "out.ipynb") == expected and done.stderr.startswith(b"out: gr")


@pytest.mark.parametrize("text", ["", "[]", "no JSON", "caf\xe9"])
def test_what_is_no_notebook_is_one_sentence(tmp_path, text):
    (tmp_path / "some.ipynb").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as a notebook"):
        execute(tmp_path / "some.ipynb", tmp_path / "out.ipynb", {}, "label")
    assert os.listdir(tmp_path) == ["some.ipynb"]


@pytest.mark.parametrize("text", ["[1]", "3", "{", "null"])
def test_parameters_that_are_no_object_are_one_sentence(tmp_path, text):
    (tmp_path / "parameters.json").write_text(text)
    with pytest.raises(UserError, match=r"parameters\.json cannot be read as JSON parameters"):
        main([str(notebook(tmp_path)), str(tmp_path / "out.ipynb"), str(tmp_path / "parameters.json")])


@pytest.mark.parametrize("arguments", [[], ["missing.ipynb", "out.ipynb"], ["some.ipynb", "out.ipynb", "missing.json"]])
def test_command_line_ends_with_one_sentence(tmp_path, arguments):
    notebook(tmp_path)
    paths = [str(tmp_path / name) for name in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "tools.execute", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_notebooks_carry_outputs_and_neither_warnings_nor_errors(file):
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    outputs = [out for cell in cells for out in cell.outputs]
    # A warning holds a path with the kernel's number, and so would differ at every execution.
    assert [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"] == []
    if file.stem not in ("explore", "index", "pretrain"):
        assert any(out.output_type in ("stream", "execute_result") for out in outputs)
        assert all(cell.execution_count for cell in cells)


def test_a_figure_without_its_arms_is_left_out_and_said(tmp_path, capsys):
    """It is no failure: what make does next goes on."""
    raised = "from lib.evidence.records import MissingArms\nraise MissingArms('expected a probe.')"
    file = notebook(tmp_path, "print('before')", raised, "print('after')")
    execute(file, tmp_path / "out.ipynb", {}, "08_learners")
    assert capsys.readouterr().out == "08_learners: left out. expected a probe.\n"
    assert printed(tmp_path / "out.ipynb") == "before\n"
