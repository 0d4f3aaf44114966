"""Hyper-parameter search for one task, within its budget: Optuna proposes, successive halving decides.

The rule's recipe is the first trial. Optuna's study learns from it and from every later one: no proposal is
drawn blindly, as a study's first ten are by default. Every trial's training and validation is charged. Half
of the budget is searched with, the other half trains what is used; where the budget is too small for all
trials, fewer are tried, and with one the rule decides.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import optuna

from lib.learning.job import Job
from lib.learning.ledger import Ledger
from lib.learning.training import Diverged, Recipe, TaskNetwork, error_of, fine_tune, predict
from lib.networks.macs import forward_macs, training_macs

SHARE = 2  # one part in so many of the budget is for the search
VALIDATION_IMAGES = 64
LEAST_IMAGES = 48  # a trial of fewer tells nothing
SPACE = {
    "body_rate": optuna.distributions.FloatDistribution(1e-6, 1e-2, log=True),
    "head_rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    "label_smoothing": optuna.distributions.FloatDistribution(0, 0.3),
    "weight_decay": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
}


def search(network: TaskNetwork, job: Job) -> tuple[Recipe, str]:
    """The recipe for training `network` with what is left in the job's ledger, charged for the search.

    The job's own is the first of the trials. Each rung trains the recipes that are left from `network` anew, for
    twice as long as the rung before, and keeps the better half by the error on dev images. A trial that
    diverges is over and counts as all wrong; the note beside the recipe says how many did.
    """
    ruled, each = job.recipe, training_macs(network, job.image_size)
    dev = job.data.dev.first(VALIDATION_IMAGES)
    validation = len(dev) * forward_macs(network, job.image_size)
    searched = job.ledger.left // SHARE
    trials = _affordable(job.trials, searched, validation, each)
    if trials == 1:
        return ruled, ""
    diverged = 0

    def error(recipe: Recipe, limit: int) -> float:
        nonlocal diverged
        spent = Ledger(limit - validation)
        trained = copy.deepcopy(network)
        try:
            fine_tune(trained, job.data.train, spent, recipe, job.engine, seed=job.seed)
        except Diverged:
            diverged += 1
            return 1.0
        finally:
            job.ledger.charge("search", spent.total)
        job.ledger.charge("validation", validation)
        return error_of(predict(trained, dev, job.engine), dev.labels.numpy())

    per_rung = searched // _rungs(trials)
    scored = [(error(ruled, per_rung // trials), ruled)]
    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=job.seed, n_startup_trials=1))
        known = {name: min(max(getattr(ruled, name), space.low), space.high) for name, space in SPACE.items()}
        study.add_trial(optuna.trial.create_trial(params=known, distributions={**SPACE}, value=scored[0][0]))
        for _ in range(trials - 1):
            trial = study.ask({**SPACE})
            recipe = replace(ruled, **trial.params)
            scored.append((error(recipe, per_rung // trials), recipe))
            study.tell(trial, scored[-1][0])
    while len(scored) > 1:
        # Ties go to the earlier trial, the rule's first of all.
        scored = sorted(scored, key=lambda pair: pair[0])[: len(scored) // 2]
        if len(scored) > 1:
            scored = [(error(recipe, per_rung // len(scored)), recipe) for _, recipe in scored]
    return scored[0][1], f"{diverged} trials of the search diverged" if diverged else ""


def _affordable(trials: int, macs: int, validation: int, each: int) -> int:
    """As many of the trials, halved and halved again, as get LEAST_IMAGES images each on the first rung."""
    while trials > 1 and (macs // _rungs(trials) // trials - validation) // each < LEAST_IMAGES:
        trials //= 2
    return trials


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's word on every trial."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _rungs(trials: int) -> int:
    """How often `trials` can be halved until one is left."""
    return max(1, trials.bit_length() - 1)
