"""Measure which precision trains a backbone fastest: `python -m tools.tune_precision DEVICE [BACKBONE ...]`.

Writes lib/learning/precision.json, from which a RunSpec takes its precision when it is made: a choice that is
committed, never one that depends on the time or the load of a run.
"""

import json
import shutil
import sys

import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import write_json
from lib.common.paths import ROOT
from lib.learning.engine import PRECISIONS, Engine, Precision
from lib.networks.backbone import list_backbones, load_backbone
from tools.speed import images_per_second

TABLE = ROOT / "lib" / "learning" / "precision.json"
WORTH = 1.1  # a compiled network must be so much faster: compiling takes a minute for every network
IMAGE_SIZE = 64  # the fastest precision is the same at other sizes
ROUNDS = 3


def measure(name: str, device: str) -> dict[str, float]:
    """Images per second that a backbone trains at on one thread, by precision."""
    backbone = load_backbone(name, pretrained=False)
    # Inductor needs a compiler on a CPU.
    compiles = device != "cpu" or shutil.which("g++")
    tried = [precision for precision in PRECISIONS if compiles or "compiled" not in precision]
    engines = {precision: Engine(Precision.named(precision), device) for precision in tried}
    return {name: images_per_second(backbone, IMAGE_SIZE, engine, ROUNDS) for name, engine in engines.items()}


def fastest(rates: dict[str, float]) -> str:
    """The precision to use."""
    return max(rates, key=lambda precision: rates[precision] / (WORTH if "compiled" in precision else 1))


def main(device: str = "cpu", *names: str) -> None:
    unknown = sorted(set(names) - set(list_backbones()))
    if device not in ("cpu", "cuda") or unknown:
        raise UserError(
            f"Cannot tune {', '.join(unknown) or device}: expected cpu or cuda, and some of "
            f"{', '.join(list_backbones())}."
        )
    rows = {}
    for name in names or list_backbones():
        rows[name] = measure(name, device)
        table = json.loads(TABLE.read_text())
        table.setdefault(device, {})[name] = fastest(rows[name])
        write_json(TABLE, table)
        print(pd.DataFrame({name: rows[name]}).T.round(1).assign(chosen=table[device][name]), flush=True)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
