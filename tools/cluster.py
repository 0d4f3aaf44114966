"""Run the arms of a profile on a cluster, with Dask: `python -m tools.cluster PROFILE WHERE [WORKERS]`.

WHERE is local (processes of this machine), the address of a scheduler (tcp://host:8786), or slurm, pbs, lsf,
sge or htcondor, whose queue, account and the like dask-jobqueue reads from Dask's configuration. Every worker
needs this folder under the same path. An arm is one run of papermill in a process of its own, as `make`
starts it: what is done is skipped, what was begun goes on. Needs the extra `cluster`.
"""

import os
import subprocess
import sys

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.paths import BUILD, ROOT
from lib.runs.profiles import arms_of
from tools.stamps import is_done, write_stamps

try:
    import dask
    import dask_jobqueue
    from distributed import Client, LocalCluster, as_completed
except ImportError as error:
    raise SystemExit(
        f"Error: {error.name} is not installed: expected the extra `cluster`. Run "
        f"`{sys.executable} -m pip install --editable '{ROOT}[cluster]'`."
    ) from error

QUEUES = {
    "slurm": dask_jobqueue.SLURMCluster,
    "pbs": dask_jobqueue.PBSCluster,
    "lsf": dask_jobqueue.LSFCluster,
    "sge": dask_jobqueue.SGECluster,
    "htcondor": dask_jobqueue.HTCondorCluster,
}
# What a job asks for where Dask's configuration names nothing else: an arm runs on one thread.
JOB = {"cores": 1, "processes": 1, "memory": "4GiB"}
# dask-jobqueue's own walltime would end a job within a long arm; LSF writes hours and minutes alone.
WALLTIMES = {"00:30:00": "12:00:00", "00:30": "12:00"}
GPU = "GPU"  # the resource that an arm on a GPU asks of a worker: `dask worker --resources GPU=1`


def run_arm(profile: str, arm: str) -> str:
    """Execute one arm's notebook in a process of its own, on the worker that this is called on.

    Returns what the process printed last. Raises UserError with its last line when it fails.
    """
    folder = BUILD / profile
    command = [
        sys.executable,
        "-m",
        "tools.execute",
        ROOT / "notebooks" / "experiment.ipynb",
        folder / "arms" / f"{arm}.ipynb",
        folder / "stamps" / "arms" / f"{arm}.json",
    ]
    finished = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"END_WITH_PARENT": str(os.getpid())},
    )
    said = finished.stderr.strip().splitlines() or [f"ended with status {finished.returncode}"]
    if finished.returncode:
        raise UserError(said[-1].removeprefix("Error: "))
    return said[-1]


def run_profile(profile: str, client: Client) -> list[str]:
    """Run the arms of a profile that are not done on the cluster's workers, and return those that failed.

    An arm whose worker dies is run again, by another worker, three times at most.
    """
    write_stamps(profile)
    arms = arms_of(profile)
    pending = [arm for arm in arms if not is_done(profile, arm)]
    print(f"{profile}: {len(pending)} of {len(arms)} arms to run. Dashboard: {client.dashboard_link}")
    futures = {}
    for arm in pending:
        on_gpu = str(arms[arm].get("device", "cpu")).startswith("cuda")
        future = client.submit(
            run_arm, profile, arm, key=f"{profile}/{arm}", pure=False, resources={GPU: 1} if on_gpu else None
        )
        futures[future] = arm
    failed = []
    for number, future in enumerate(as_completed(futures), 1):
        arm = futures[future]
        if future.status == "finished":
            print(f"{number}/{len(pending)} {future.result()}", flush=True)
        else:
            failed.append(arm)
            print(f"{number}/{len(pending)} {arm} failed: {future.exception()}", flush=True)
    write_stamps(profile)  # anew, for they hold a hash of the records
    return failed


def connect(where: str, workers: int) -> Client:
    """A client of the cluster that `where` names, its workers started or asked for."""
    if "://" in where:
        try:
            return Client(where, timeout=20)
        except OSError as error:
            raise UserError(f"No Dask scheduler answers at {where}: expected a running one.") from error
    if where == "local":
        return Client(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0"))
    if where not in QUEUES:
        raise UserError(
            f"CLUSTER={where} is unknown: expected local, the address of a scheduler (tcp://host:8786), or "
            f"one of {', '.join(QUEUES)}."
        )
    configured = dask.config.get(f"jobqueue.{where}")
    wanted = {name: value for name, value in JOB.items() if configured.get(name) is None}
    if configured.get("walltime") in WALLTIMES:
        wanted["walltime"] = WALLTIMES[configured["walltime"]]
    logs = BUILD / "cluster"
    logs.mkdir(parents=True, exist_ok=True)
    cluster = QUEUES[where](python=sys.executable, log_directory=str(logs), **wanted)
    cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)  # a job that ends early is given in again
    return Client(cluster)


def main(profile: str = "", where: str = "local", workers: str = "2") -> None:
    arms_of(profile)  # refuses an unknown one before anything starts
    if not workers.isdigit() or int(workers) < 1:
        raise UserError(f"WORKERS={workers} is not valid: expected how many to start, 1 or more.")
    with connect(where, int(workers)) as client:
        failed = run_profile(profile, client)
        if client.cluster is not None:
            client.cluster.close()
    if failed:
        raise UserError(f"{', '.join(failed)} failed: see above. Run again when mended; the others are kept.")


if __name__ == "__main__":
    # By its name: workers look for run_arm in tools.cluster, not in a __main__ of their own.
    from tools import cluster

    with exit_with_one_sentence():
        cluster.main(*sys.argv[1:])
