"""The learning rate of a run that searches none: a committed rule in network and ratio.

log10(rate) = base + slope_ratio * ratio, held within the range that was searched. It does not depend on the
budget, so all budgets of a task share the trunk of their trainings. A task that took part in the fit gets the
rule that was fitted on the *other* tasks (dev images, never test), so no task has a hand in its own learning
rate; any other task gets the rule of all of them.
A head that was solved before training has rules of its own: what it goes by must move far less.
`python -m tools.tune_rates` makes lib/learning/learning_rate.json.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from lib.common.errors import UserError

TABLE = Path(__file__).parent / "learning_rate.json"
ALL_TASKS = "*"
HEADS = {False: "new head", True: "probed head"}  # the table's two parts


@dataclass(frozen=True)
class Rule:
    """log10 of the learning rate, linear in the ratio; and whose errors made it."""

    base: float
    slope_ratio: float
    low: float
    high: float
    fitted_on: tuple[str, ...]

    def __call__(self, ratio: float) -> float:
        return min(max(10 ** (self.base + self.slope_ratio * ratio), self.low), self.high)


@cache
def _table(probed: bool) -> dict[str, dict[str, Rule]]:
    stored = json.loads(TABLE.read_bytes())[HEADS[probed]]
    return {name: {task: Rule(**rule) for task, rule in rules.items()} for name, rules in stored.items()}


def learning_rate(backbone: str, ratio: float, task: str = ALL_TASKS, probed: bool = False) -> float:
    """The rule's learning rate for a backbone pruned by `ratio` and trained on `task`.

    `probed` says that the head was solved before. Raises UserError for a backbone without a rule.
    """
    table = _table(probed)
    if backbone not in table:
        raise UserError(
            f"No learning rate is known for {backbone!r}{' with a probed head' if probed else ''}: expected "
            f"one of {', '.join(table)}. Give learning_rate= in the spec, or fit a rule with "
            f"`python -m tools.tune_rates {backbone}{' probe_finetune' if probed else ''}`."
        )
    rules = table[backbone]
    return rules.get(task, rules[ALL_TASKS])(ratio)


def as_json(rules: dict[str, Rule]) -> dict[str, dict]:
    """Rules by task as they are stored."""
    return {task: asdict(rule) for task, rule in rules.items()}
