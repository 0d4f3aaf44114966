"""Hyper-parameter search for one task, within its budget: Optuna proposes, successive halving decides.

Every trial's training and validation is charged. Half of the budget is searched with, the other half trains
what is used; where the budget is too small for all trials, fewer are tried, and with one the rule decides.
"""

import copy
from dataclasses import replace

import optuna

from lib.learning.ledger import Ledger
from lib.learning.training import Diverged, Recipe, TaskNetwork, error_of, fine_tune, predict
from lib.networks.macs import forward_macs, training_macs
from lib.streams.task import Split, TaskData

SHARE = 2  # one part in so many of the budget is for the search
VALIDATION_IMAGES = 64
LEAST_STEPS = 3  # a trial of fewer tells nothing
SPACE = {
    "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    "label_smoothing": optuna.distributions.FloatDistribution(0, 0.3),
    "weight_decay": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
}

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(
    network: TaskNetwork,
    data: TaskData,
    ledger: Ledger,
    ruled: Recipe,
    trials: int,
    precision: str,
    seed: int,
    device: str,
) -> tuple[Recipe, str]:
    """The recipe for training `network` with what is left in the ledger, which is charged for the search.

    `ruled` is the first of the trials. Each rung trains the recipes that are left from `network` anew, for
    twice as long as the rung before, and keeps the better half by the error on dev images. A trial that
    diverges is over and counts as all wrong; the note beside the recipe says how many did.
    """
    image_size = data.train.images.shape[1]
    each = training_macs(network, image_size)
    dev = Split(data.dev.images[:VALIDATION_IMAGES], data.dev.labels[:VALIDATION_IMAGES])
    validation = len(dev) * forward_macs(network, image_size)
    searched = ledger.left // SHARE
    while trials > 1 and (searched // _rungs(trials) // trials - validation) // each < (
        LEAST_STEPS * Recipe.batch_size
    ):
        trials //= 2
    if trials == 1:
        return ruled, ""
    diverged = 0

    def error(recipe: Recipe, limit: int) -> float:
        nonlocal diverged
        spent = Ledger(limit - validation)
        trained = copy.deepcopy(network)
        try:
            fine_tune(trained, data.train, spent, recipe, precision, seed, device)
        except Diverged:
            diverged += 1
            return 1.0
        finally:
            ledger.charge("search", spent.total)
        ledger.charge("validation", validation)
        return error_of(predict(trained, dev, precision, device), dev.labels.numpy())

    per_rung = searched // _rungs(trials)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    scored = [(error(ruled, per_rung // trials), ruled)]
    for _ in range(trials - 1):
        trial = study.ask(SPACE)
        recipe = replace(ruled, **trial.params)
        scored.append((error(recipe, per_rung // trials), recipe))
        study.tell(trial, scored[-1][0])
    while len(scored) > 1:
        # Ties go to the earlier trial, the rule's first of all.
        scored = sorted(scored, key=lambda pair: pair[0])[: len(scored) // 2]
        if len(scored) > 1:
            scored = [(error(recipe, per_rung // len(scored)), recipe) for _, recipe in scored]
    return scored[0][1], f"{diverged} trials of the search diverged" if diverged else ""


def _rungs(trials: int) -> int:
    """How often `trials` can be halved until one is left."""
    return max(1, trials.bit_length() - 1)
