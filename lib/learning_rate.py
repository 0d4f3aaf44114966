"""The learning rate of a run that searches none: a committed rule in network, ratio and steps.

log10(rate) = base + slope * log10(steps / 30), held within the range that the rule was fitted in. The
numbers are in lib/data/learning_rate.json; `fitted_on` there says on what, none of it a task of the
pocket stream.
"""

import json
import math
from functools import cache

from lib.errors import UserError
from lib.paths import DATA


@cache
def _rules() -> dict[str, dict]:
    return json.loads((DATA / "learning_rate.json").read_text())["rules"]


def learning_rate(backbone: str, ratio: float, steps: int) -> float:
    """The rule's learning rate for a backbone pruned by `ratio` and trained for `steps`.

    Raises UserError for a backbone that the rule was not fitted for.
    """
    rules = _rules()
    if backbone not in rules:
        raise UserError(
            f"No learning rate is known for {backbone!r}: expected one of {', '.join(rules)}. Give "
            "learning_rate= in the spec."
        )
    rule = rules[backbone]
    exponent = (
        rule["base"] + rule["slope_steps"] * math.log10(max(steps, 1) / 30) + rule["slope_ratio"] * ratio
    )
    low, high = rule["range"]
    return min(max(10**exponent, low), high)
