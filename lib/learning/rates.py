"""The rates of body and head of a run that searches none: committed rules, by learner, network and granularity.

    log10(rate) = base + by_ratio * ratio + by_budget * log4(budget / 64)

held within the rates that were tried. A task of a data set that took part in the fit gets the rule that was fitted
on the *other* data sets (dev images, never test), so no task has a hand in its own rates; any other task gets the
rule of all of them. `python -m tools.tune_rates` makes lib/learning/rates.json from the records of the fit.
"""

import json
import math
from functools import cache
from pathlib import Path

from lib.common.errors import UserError

TABLE = Path(__file__).parent / "rates.json"
ALL = "*"
# Learners that start alike are tuned together; so are networks that nothing is removed from.
TUNED_AS = {"previous": "independent", "dynamic": "independent"}


@cache
def _table() -> dict:
    return json.loads(TABLE.read_bytes())


def data_set(task: str) -> str:
    """The data set of a task by its name in any stream: Fashion MNIST is fashion_mnist."""
    return "".join(letter for letter in task.lower() if letter.isalnum())


def rates(
    learner: str, backbone: str, granularity: str, ratio: float, budget: int, task: str = ALL
) -> tuple[float, float]:
    """Rates of body and head for a task within a budget of dense images.

    Raises UserError where no rule is known.
    """
    learner = TUNED_AS.get(learner, learner)
    try:
        rules = _table()[backbone][learner][granularity]
    except KeyError as error:
        raise UserError(
            f"No rates are known for learner={learner!r}, backbone={backbone!r}, granularity={granularity!r}: give "
            "body_rate= and head_rate= in the spec, or fit them with `python -m tools.tune_rates "
            f"{backbone} {learner} {granularity}`."
        ) from error
    rule = rules.get(data_set(task), rules[ALL])
    fourfold = math.log(budget / 64, 4)

    def on(line: dict[str, float]) -> float:
        exponent = line["base"] + line["by_ratio"] * ratio + line["by_budget"] * fourfold
        return min(max(10**exponent, line["low"]), line["high"])

    return on(rule["body"]), on(rule["head"])
