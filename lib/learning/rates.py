"""The rates of body and head of a run that searches none: committed, by network and learner.

A task of a data set that took part in the fit gets the rates that were fitted on the *other* data sets (dev images,
never test), so no task has a hand in its own; any other task gets those of all of them. One pair serves all shares and
budgets: a pair for each does no better on the data set left out (tools.tune_rates.losses_by_rule).
`python -m tools.tune_rates` makes lib/learning/rates.json from the records of the fit.
"""

import json
from functools import cache
from pathlib import Path

from lib.common.errors import UserError

TABLE = Path(__file__).parent / "rates.json"
ALL = "*"
# Learners that start alike are tuned together.
TUNED_AS = {"previous": "independent", "dynamic": "independent"}


@cache
def _table() -> dict:
    return json.loads(TABLE.read_bytes())


def data_set(task: str) -> str:
    """The data set of a task by its name in any stream: Fashion MNIST is fashion_mnist."""
    return "".join(letter for letter in task.lower() if letter.isalnum())


def rates(learner: str, backbone: str, task: str = ALL) -> tuple[float, float]:
    """Rates of body and head for a task.

    Raises UserError where none are known.
    """
    learner = TUNED_AS.get(learner, learner)
    try:
        found = _table()[backbone][learner]
    except KeyError as error:
        raise UserError(
            f"No rates are known for learner={learner!r}, backbone={backbone!r}: give body_rate= and head_rate= in the "
            f"spec, or fit them with `python -m tools.tune_rates {backbone} {learner}`."
        ) from error
    fitted = found.get(data_set(task), found[ALL])
    return fitted["body"], fitted["head"]
