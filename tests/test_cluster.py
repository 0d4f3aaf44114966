"""Arms on Dask's workers: the same records as without, whatever dies. Needs the extra `cluster`."""

import json
import os
import shutil
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
from local_slurm import MISSING, jobs_of, local_slurm
from test_runs import assert_same_records
from test_system import Project

pytestmark = pytest.mark.slow
pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed: run `make setup-cluster`")

PROFILE = """
[smoke.common]
backbone = "resnet18half_64"
tasks = ["mnist", "letters", "scripts"]
budgets = [16, 64]
train_images = 120
evaluation_images = 32

[smoke.arms]
dense = { ratio = 0.0 }
random_50 = { ratio = 0.5, criterion = "random" }
l1_50 = { ratio = 0.5 }
"""
ARMS = ["dense", "random_50", "l1_50"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A copy of the repository with a profile of three short arms."""
    project = Project(tmp_path_factory.mktemp("project"))
    (project.root / "notebooks/profiles.toml").write_text(PROFILE)
    return project


def forget(project: Project) -> None:
    """Remove what was run, but not what was ingested."""
    for name in ("smoke", "runs"):
        shutil.rmtree(project.root / "build" / name, ignore_errors=True)


def with_make(project: Project, jobs: int) -> dict[str, pd.DataFrame]:
    """The arms' records as make runs them, from nothing."""
    forget(project)
    for command in (
        [".venv/bin/python", "-m", "tools.stamps", "renew", "smoke"],
        ["make", f"-j{jobs}", "_arms", "PROFILE=smoke"],
    ):
        status, output = project.run(*command)
        assert status == 0, output
    return records(project)


@pytest.fixture(scope="module")
def expected(project) -> dict[str, pd.DataFrame]:
    return with_make(project, jobs=1)


def records(project: Project) -> dict[str, pd.DataFrame]:
    return {arm: pd.read_parquet(project.root / "build/smoke/arms" / f"{arm}.parquet") for arm in ARMS}


def assert_same(project: Project, expected: dict[str, pd.DataFrame]) -> None:
    for arm, found in records(project).items():
        assert_same_records(found, expected[arm])


@pytest.fixture
def cluster(project, expected):
    """Starts `python -m tools.cluster smoke ...` with nothing done."""
    forget(project)
    return lambda *arguments: project.start(sys.executable, "-m", "tools.cluster", "smoke", *arguments)


def output_of(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def arm_processes(process: subprocess.Popen) -> list[psutil.Process]:
    """Running arms: the processes below `process` that execute a notebook."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "tools.execute" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def test_two_arms_side_by_side_have_the_records_of_one_after_the_other(project, expected):
    for arm, found in with_make(project, jobs=2).items():
        assert_same_records(found, expected[arm])


def test_local_workers_give_the_same_records_once(project, expected, cluster):
    output = output_of(cluster("local", "2"))
    assert "3 of 3 arms to run. Dashboard: http://" in output and "3/3 " in output
    assert_same(project, expected)
    again = project.start(sys.executable, "-m", "tools.cluster", "smoke", "local", "1")
    assert "0 of 3 arms to run" in output_of(again)


def test_a_worker_that_is_killed_twice_loses_nothing(project, expected, cluster):
    process = cluster("local", "2")
    killed = set()
    deadline = time.monotonic() + 300
    while len(killed) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        for arm in arm_processes(process):
            worker = arm.parent()
            begun = list((project.root / "build/runs").glob("*/events/[!.]*.json"))
            if worker and worker.pid not in killed and len(begun) > len(killed):
                killed.add(worker.pid)
                worker.kill()
                arm.wait(timeout=20)  # it does not outlive its worker
                break
        time.sleep(0.1)
    output_of(process)
    assert_same(project, expected)


def test_a_scheduler_and_two_workers_of_their_own(project, expected, cluster, tmp_path):
    file = tmp_path / "scheduler.json"
    tools = [
        project.start(
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--port",
            "0",
            "--dashboard-address",
            ":0",
            "--scheduler-file",
            str(file),
        )
    ]
    try:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        address = json.loads(file.read_text())["address"]
        for _ in range(2):
            tools.append(
                project.start(
                    sys.executable,
                    "-m",
                    "distributed.cli.dask_worker",
                    address,
                    "--nthreads",
                    "1",
                    "--local-directory",
                    str(tmp_path),
                )
            )
        assert "3/3 " in output_of(cluster(address))
    finally:
        for tool in tools:
            tool.kill()
            tool.communicate()
    assert_same(project, expected)


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not here: run `apt-get install slurm-wlm munge`")
@pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons want to be root")
def test_a_real_slurm_gives_the_same_records(project, expected, cluster, monkeypatch, tmp_path):
    """Also when one of its jobs is cancelled: another takes its place."""
    with local_slurm(tmp_path) as environment:
        monkeypatch.setitem(project.environment, "SLURM_CONF", environment["SLURM_CONF"])
        process, deadline = cluster("slurm", "2"), time.monotonic() + 300
        while not list((project.root / "build/runs").glob("*/events/[!.]*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        cancelled = min(jobs_of(environment))
        subprocess.run(["scancel", cancelled], env=environment, check=True)
        assert "3/3 " in output_of(process)
        assert len(jobs_of(environment)) > 2
        assert list((project.root / "build/cluster").glob(f"*{cancelled}.out"))
    assert_same(project, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tcp://127.0.0.1:9",), "No Dask scheduler answers at tcp://127.0.0.1:9"),
        (("cloud",), "CLUSTER=cloud is unknown: expected local"),
        (("local", "0"), "WORKERS=0 is not valid"),
    ],
)
def test_bad_clusters_are_refused_in_one_sentence(cluster, arguments, message):
    output = output_of(cluster(*arguments), status=1)
    assert message in output and "Traceback" not in output


def test_a_failing_arm_is_named_and_the_others_are_kept(project, expected, cluster):
    profiles = project.root / "notebooks/profiles.toml"
    profiles.write_text(PROFILE + "bad = { ratio = 1.5 }\n")
    try:
        output = output_of(cluster("local", "2"), status=1)
    finally:
        profiles.write_text(PROFILE)
    assert "bad failed: ratio=1.5" in output and "Error: bad failed: see above" in output
    assert_same(project, expected)
