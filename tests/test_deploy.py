"""The deployment examples: valid as far as that can be seen without a cluster, and their decisions really made."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from datarax import multihost
from datarax.core import errors
from datarax.run_config import load_config
from datarax.signals import StopRequested

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "configs" / "deploy"
SLURM = DEPLOY / "slurm.sbatch"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))

AGAIN = {StopRequested.exit_code, 134}
FOR_GOOD = {errors.MismatchError.exit_code, errors.ConfigError.exit_code, errors.DataraxError.exit_code}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def jobs(path):
    """The spec of every Job in a manifest, by itself or in a JobSet."""
    for document in documents(path):
        if document["kind"] == "Job":
            yield document["spec"]
        elif document["kind"] == "JobSet":
            for replicated in document["spec"]["replicatedJobs"]:
                yield replicated["template"]["spec"]


def container(job):
    (found,) = job["template"]["spec"]["containers"]
    return found


def settings_in(script):
    """What a shell script sets on the command line of `datarax run`."""
    words = " ".join(script.replace("\\\n", " ").split())
    return [found.strip("'") for found in re.findall(r"--set ('[^']*'|\S+)", words)]


def test_there_is_an_example_for_each_scheduler():
    assert {path.name for path in DEPLOY.iterdir()} == {
        "slurm.sbatch",
        "kubernetes-jobset.yaml",
        "kubernetes-indexed-job.yaml",
        "cloud-tpu.sh",
    }


@pytest.mark.parametrize("path", [SLURM, DEPLOY / "cloud-tpu.sh"], ids=lambda path: path.name)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_settings_that_scripts_pass_are_settings():
    scripts = [SLURM.read_text()] + [container(job)["args"][0] for path in MANIFESTS for job in jobs(path)]
    for script in scripts:
        overrides = settings_in(script)
        assert any("preemption_seconds" in override for override in overrides)
        load_config(ROOT / "configs" / "multihost.toml", overrides)


# Slurm.


def test_slurm_directives():
    found = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert len(found) == len(re.findall(r"^#SBATCH", SLURM.read_text(), re.MULTILINE))
    assert "requeue" in found
    assert found["ntasks-per-node"] == "1"
    assert found["open-mode"] == "append"
    warning, seconds = found["signal"].split("@")
    assert warning == "TERM"
    assert int(seconds) > int(re.search(r"preemption_seconds=(\d+)", SLURM.read_text())[1])


def programs(directory, srun):
    """Programs of these names that stand for Slurm's."""
    for name, text in (("srun", srun), ("scontrol", 'echo "scontrol $*" >> calls')):
        path = directory / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}


@pytest.mark.parametrize("code", [0, 1, 2, 70, 74, 75, 134, 137])
def test_slurm_runs_the_job_again_where_that_continues_it(code, tmp_path):
    environment = programs(tmp_path, f'echo "$@" > arguments; exit {code}')
    done = subprocess.run(["bash", SLURM], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == code
    calls = tmp_path / "calls"
    requeued = calls.exists() and calls.read_text() == "scontrol requeue 17\n"
    assert requeued == (code in AGAIN | {137})
    assert "datarax run configs/multihost.toml" in (tmp_path / "arguments").read_text()


def test_slurm_waits_for_the_processes_after_a_signal(tmp_path):
    environment = programs(tmp_path, "touch started; while [ ! -e saved ]; do sleep 0.05; done; exit 75")
    job = subprocess.Popen(["bash", SLURM], cwd=tmp_path, env=environment)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    for _ in range(2):
        job.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert job.poll() is None
    (tmp_path / "saved").touch()
    assert job.wait(60) == 75
    assert (tmp_path / "calls").read_text() == "scontrol requeue 17\n"


# Cloud TPU.


@pytest.mark.parametrize(("codes", "end"), [([75, 134, 255, 0], 0), ([75, 1], 1), ([75, 75, 75], 75)])
def test_cloud_tpu_starts_again_until_complete(codes, end, tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        '#!/bin/bash\necho "$@" >> calls\nset -- $(cat codes)\nfirst=$1; shift\necho "$@" > codes\nexit "$first"\n'
    )
    gcloud.chmod(0o755)
    (tmp_path / "codes").write_text(" ".join(map(str, codes)))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ATTEMPTS": str(len(codes))}
    done = subprocess.run(
        ["bash", DEPLOY / "cloud-tpu.sh"], cwd=tmp_path, env=environment, timeout=60, check=False
    )
    assert done.returncode == end
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(codes)
    assert all("--worker=all" in call and 'multihost.start="cluster"' in call for call in calls)


# Kubernetes.


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_kinds(path):
    kinds = {document["kind"]: document["apiVersion"] for document in documents(path)}
    known = {"Job": "batch/v1", "Service": "v1", "JobSet": "jobset.x-k8s.io/v1alpha2"}
    assert kinds.items() <= known.items()
    assert list(jobs(path))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_jobs_start_one_process_per_pod_that_knows_its_place(path):
    for job in jobs(path):
        assert job["completionMode"] == "Indexed"
        assert job["completions"] == job["parallelism"]
        environment = {each["name"]: each for each in container(job)["env"]}
        assert set(environment) == {multihost.COORDINATOR, multihost.COUNT, multihost.INDEX}
        assert environment[multihost.COUNT]["value"] == str(job["completions"])
        index = environment[multihost.INDEX]["valueFrom"]["fieldRef"]["fieldPath"]
        assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        host, port = environment[multihost.COORDINATOR]["value"].split(":")
        assert int(port) in [each["containerPort"] for each in container(job)["ports"]]
        assert re.fullmatch(r"datarax(-run-0)?-0\.datarax", host)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_starts_again_where_that_continues_the_run(path):
    for job in jobs(path):
        pod = job["template"]["spec"]
        assert pod["restartPolicy"] == "Never", "podFailurePolicy needs it"
        rules = job["podFailurePolicy"]["rules"]
        by_code = {}
        for rule in rules:
            assert set(rule) == {"action", "onExitCodes"} or set(rule) == {"action", "onPodConditions"}
            if "onExitCodes" in rule:
                assert rule["onExitCodes"]["containerName"] == container(job)["name"]
                assert rule["onExitCodes"]["operator"] == "In"
                by_code |= dict.fromkeys(rule["onExitCodes"]["values"], rule["action"])
        assert {code for code, action in by_code.items() if action == "FailJob"} == FOR_GOOD
        assert {code for code, action in by_code.items() if action in ("Ignore", "Count")} == AGAIN
        conditions = [each for rule in rules for each in rule.get("onPodConditions", ())]
        assert conditions == [{"type": "DisruptionTarget", "status": "True"}]
        script = container(job)["args"][0]
        limit = int(re.search(r"preemption_seconds=(\d+)", script)[1])
        assert pod["terminationGracePeriodSeconds"] > limit


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_scripts_are_bash_and_give_the_signal_to_datarax(path):
    for job in jobs(path):
        assert container(job)["command"] == ["/bin/bash", "-c"]
        (script,) = container(job)["args"]
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert re.search(r"^exec datarax run ", script, re.MULTILINE)
        claims = {each["name"] for each in job["template"]["spec"]["volumes"]}
        assert {each["name"] for each in container(job)["volumeMounts"]} <= claims
