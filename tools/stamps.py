"""What make compares, decided by content and never by time. Standard library only: make asks often.

python -m tools.stamps arms PROFILE      names of the profile's arms
python -m tools.stamps renew PROFILE     renew, under build/, the stamps whose content changed
python -m tools.stamps warn PROFILE      say which committed records are of older code
"""

import json
import sys
from pathlib import Path

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import renew
from lib.common.paths import BUILD, PAPER_RECORDS, ROOT
from lib.runs.profiles import COMMITTED, arms_of, records_file
from lib.runs.stamps import code_of, drawing_hash, hash_of, training_hash


def is_done(profile: str, arm: str) -> bool:
    """Whether an arm's executed notebook is newer than what it depends on, as make sees it."""
    folder = BUILD / profile
    needed = (f"arms/{arm}.json", f"arms/{arm}.training", "notebooks/experiment")
    done = folder / "arms" / f"{arm}.ipynb"
    return done.exists() and all(done.stat().st_mtime >= (folder / "stamps" / name).stat().st_mtime for name in needed)


def write_stamps(profile: str) -> None:
    """Renew what make compares: a file changes, and so gets a new time, only when its content does.

    `arms/<name>.json` and `draw.json` are the notebooks' parameters, `arms/<name>.training` and
    `drawing/<notebook>` hold hashes of the code, `records` one of the records there are.
    """
    folder = BUILD / profile
    texts: dict[str, str] = {}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        texts[f"notebooks/{notebook.stem}"] = code_of(notebook)
        texts[f"drawing/{notebook.stem}"] = drawing_hash(notebook)
    for arm, fields in arms_of(profile).items():
        texts[f"arms/{arm}.json"] = json.dumps(
            {**fields, "records_file": str(records_file(profile, arm).relative_to(ROOT))}, indent=1
        )
        own = (Path(str(fields.get(name))) for name in ("stream", "weights"))
        data = hash_of(file for file in own if file.is_file())
        texts[f"arms/{arm}.training"] = f"{training_hash(fields)}\n{data}"
    records = [records_file(profile, arm) for arm in arms_of(profile)]
    if profile in COMMITTED:  # a figure may read all that is committed
        records = list(PAPER_RECORDS.rglob("*.parquet"))
    texts["records"] = hash_of(file for file in records if file.exists())
    texts["draw.json"] = json.dumps({"profile": profile, "save_figures_to": profile})
    for name, text in texts.items():
        renew(folder / "stamps" / name, text.encode())


def newer_code(profile: str) -> list[str]:
    """Arms whose committed records were measured by other training code than today's."""
    return [
        arm
        for arm, fields in arms_of(profile).items()
        if (file := records_file(profile, arm).with_suffix(".json")).exists()
        and json.loads(file.read_bytes())["training_hash"] != training_hash(fields)
    ]


if __name__ == "__main__":
    with exit_with_one_sentence():
        match sys.argv[1:]:
            case ["arms", name]:
                print(*arms_of(name))
            case ["renew", name]:
                write_stamps(name)
            case ["warn", name]:
                if arms := newer_code(name):
                    print(
                        f"Warning: the code that trains has changed since the records of {', '.join(arms)} "
                        f"were measured; they are redrawn as they are. `make rerun PROFILE={name}` "
                        "measures them anew.",
                        file=sys.stderr,
                    )
            case _:
                raise UserError("Usage: python -m tools.stamps {arms,renew,warn} PROFILE")
