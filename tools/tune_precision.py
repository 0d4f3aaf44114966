"""Measure which precision trains a backbone fastest: `python -m tools.tune_precision DEVICE [BACKBONE ...]`.

It only says so: which is fastest depends on the processor (without instructions for it, bf16 trains ten times slower
than fp32), and a run's numbers must not. A spec computes in fp32 unless it names another precision.
"""

import shutil
import sys

import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.learning.engine import PRECISIONS, Engine
from lib.networks.backbone import list_backbones, load_backbone
from tools.speed import images_per_second

WORTH = 1.1  # a compiled network must be so much faster: compiling takes a minute for every network
IMAGE_SIZE = 64  # the fastest precision is the same at other sizes
ROUNDS = 3


def measure(name: str, device: str) -> dict[str, float]:
    """Images per second that a backbone trains at on one thread, by precision."""
    backbone = load_backbone(name, pretrained=False)
    # Inductor needs a compiler on a CPU.
    compiles = device != "cpu" or shutil.which("g++")
    tried = [precision for precision in PRECISIONS if compiles or "compiled" not in precision]
    engines = {precision: Engine(precision, device) for precision in tried}
    return {name: images_per_second(backbone, IMAGE_SIZE, engine, ROUNDS) for name, engine in engines.items()}


def fastest(rates: dict[str, float]) -> str:
    """The precision to name in a spec."""
    return max(rates, key=lambda precision: rates[precision] / (WORTH if "compiled" in precision else 1))


def main(device: str = "cpu", *names: str) -> None:
    unknown = sorted(set(names) - set(list_backbones()))
    if device not in ("cpu", "cuda") or unknown:
        raise UserError(
            f"Cannot measure {', '.join(unknown) or device}: expected cpu or cuda, and some of "
            f"{', '.join(list_backbones())}."
        )
    for name in names or list_backbones():
        rates = measure(name, device)
        print(pd.DataFrame({name: rates}).T.round(1).assign(fastest=fastest(rates)), flush=True)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(*sys.argv[1:])
