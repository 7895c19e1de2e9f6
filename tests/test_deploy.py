"""The deployment examples: valid as far as that can be seen without a cluster, their decisions really made; and their guide."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from datarax import SaveConfig, multihost
from datarax.core import errors
from datarax.run_config import load_config
from tests.support.processes import free_port

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "configs" / "deploy"
SLURM = DEPLOY / "slurm.sbatch"
TPU = DEPLOY / "cloud-tpu.sh"
MANIFESTS = sorted(DEPLOY.glob("*.yaml"))

STOPPED = 75
AGAIN = {STOPPED, 128 + signal.SIGABRT, 128 + signal.SIGTERM}
WARNED = 128 + signal.SIGUSR1
KILLED = 128 + signal.SIGKILL
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


@pytest.mark.parametrize("path", [SLURM, TPU], ids=lambda path: path.name)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_settings_that_scripts_pass_are_settings():
    scripts = [SLURM.read_text(), TPU.read_text().replace('\\"', '"').replace("$SHARED", "/shared")]
    scripts += [container(job)["args"][0] for path in MANIFESTS for job in jobs(path)]
    for script in scripts:
        overrides = settings_in(script)
        assert any("preemption_seconds" in override for override in overrides)
        load_config(ROOT / "configs" / "multihost.toml", overrides)


# Slurm.


def test_slurm_directives():
    found = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert len(found) == len(re.findall(r"^#SBATCH", SLURM.read_text(), re.MULTILINE))
    known = {"job-name", "nodes", "ntasks-per-node", "time", "requeue", "open-mode", "output", "signal"}
    assert set(found) == known
    assert found["ntasks-per-node"] == "1"
    assert found["open-mode"] == "append"
    warning, seconds = found["signal"].split("@")
    assert warning == "USR1", "with B: the signal would reach the shell only, which asks nobody to save"
    assert warning in SaveConfig().signals
    assert int(seconds) > int(re.search(r"preemption_seconds=(\d+)", SLURM.read_text())[1])


# As Slurm's: runs the command once for each code in the file, as a task of its own; the highest code is that of all.
SRUN = """
while [[ $1 == --* ]]; do shift; done
highest=0 index=0
for code in $(cat codes); do
  SLURM_PROCID=$index CODE=$code "$@"
  code=$?
  ((code > highest)) && highest=$code
  ((index += 1))
done
exit $highest
"""


def programs(directory, **texts):
    """Programs of these names that stand for the real ones."""
    for name, text in texts.items():
        path = directory / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


def slurm(directory, datarax, codes, **environment):
    """The batch script in a directory with stand-ins for Slurm's programs and ours."""
    (directory / "codes").write_text(" ".join(map(str, codes)))
    found = programs(directory, srun=SRUN, scontrol='echo "scontrol $*" >> calls', datarax=datarax)
    # A session of its own, as under Slurm.
    return subprocess.Popen(
        ["bash", SLURM],
        cwd=directory,
        env={**found, "SLURM_JOB_ID": "17", **environment},
        start_new_session=True,
    )


def was_requeued(directory):
    calls = directory / "calls"
    assert not calls.exists() or calls.read_text() == "scontrol requeue 17\n"
    return calls.exists()


ENDS_WITH_ITS_CODE = 'echo "$@" > arguments; exit "$CODE"'


@pytest.mark.parametrize(
    ("codes", "again"),
    [
        ([0, 0], False),
        ([1], False),
        ([2, 2], False),
        ([70], False),
        ([74, 74], False),
        ([127], False),
        ([75, 75], True),
        ([134, KILLED, 134], True),
        ([143], True),
        ([WARNED], True),  # nothing was running yet
        ([75, 0], True),
        # One that fails takes the others with it: they follow, whatever they end with.
        ([70, 75, 75], False),
        ([75, 1], False),
        ([75, 134, 74], False),
    ],
)
def test_slurm_runs_the_job_again_where_that_continues_it(codes, again, tmp_path):
    job = slurm(tmp_path, ENDS_WITH_ITS_CODE, codes)
    assert (job.wait(60) == 0) == (set(codes) == {0})
    assert was_requeued(tmp_path) == again
    assert (tmp_path / "arguments").read_text().startswith("run configs/multihost.toml --set ")


@pytest.mark.parametrize(("restarts", "again"), [("99", True), ("100", False)])
def test_slurm_does_not_run_the_job_again_for_ever(restarts, again, tmp_path):
    assert slurm(tmp_path, ENDS_WITH_ITS_CODE, [75], SLURM_RESTART_COUNT=restarts).wait(60) == 75
    assert was_requeued(tmp_path) == again


SAVES_WHEN_TOLD = 'trap "saving=yes" TERM USR1; touch started; until [ "$saving" -a -e may_save ]; do sleep 0.05; done; exit 75'


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_slurm_waits_for_the_save_when_the_time_is_nearly_up_and_runs_again(tmp_path):
    job = slurm(tmp_path, SAVES_WHEN_TOLD, [75])
    wait_for(tmp_path / "started")
    # To all processes of the step; the batch shell and srun are not told.
    (step,) = subprocess.check_output(["pgrep", "-P", str(job.pid)], text=True).split()
    (task,) = subprocess.check_output(["pgrep", "-P", step], text=True).split()
    (datarax,) = subprocess.check_output(["pgrep", "-P", task], text=True).split()
    for pid in (task, datarax):
        os.kill(int(pid), signal.SIGUSR1)
    time.sleep(0.2)
    assert job.poll() is None
    (tmp_path / "may_save").touch()
    assert job.wait(60) == 75
    assert was_requeued(tmp_path)


def test_slurm_waits_for_the_save_of_a_cancelled_job_and_leaves_it_cancelled(tmp_path):
    job = slurm(tmp_path, SAVES_WHEN_TOLD, [75])
    wait_for(tmp_path / "started")
    (step,) = subprocess.check_output(["pgrep", "-P", str(job.pid)], text=True).split()
    (task,) = subprocess.check_output(["pgrep", "-P", step], text=True).split()
    (datarax,) = subprocess.check_output(["pgrep", "-P", task], text=True).split()
    for pid in (job.pid, task, datarax, job.pid):
        os.kill(int(pid), signal.SIGTERM)
        time.sleep(0.1)
        assert job.poll() is None
    (tmp_path / "may_save").touch()
    assert job.wait(60) == 75
    assert not was_requeued(tmp_path)


# Cloud TPU.


# As Google's: one attempt per line of the file, one host per word of it; "-" is a host whose connection broke. Ends with the
# first code that is not 0. What the hosts are told is run.
GCLOUD = """
echo "$*" | head -1 >> calls
case "$*" in
  *"tpu-vm describe"*) cat slice; exit 0 ;;
  *"queued-resources describe"*) cat request; exit 0 ;;
  *"queued-resources delete"*) exit 0 ;;
  *"queued-resources create"*) echo READY > slice; exit 0 ;;
esac
read -r hosts < attempts
sed -i 1d attempts
while [ $# -gt 1 ]; do shift; done
first=0
for code in $hosts; do
  if [ "$code" = - ]; then code=255; else CODE=$code bash -c "$1"; fi
  [ $first = 0 ] && first=$code
done
exit $first
"""


def cloud_tpu(directory, attempts, slice_state="READY", request="ACTIVE", **environment):
    (directory / "attempts").write_text("".join(f"{line}\n" for line in attempts))
    (directory / "slice").write_text(f"{slice_state}\n")
    (directory / "request").write_text(f"{request}\n")
    found = programs(directory, gcloud=GCLOUD, datarax=ENDS_WITH_ITS_CODE, pkill="", pgrep="exit 1")
    found |= {"SHARED": str(directory), "PAUSE": "0", "ATTEMPTS": str(len(attempts)), **environment}
    return subprocess.run(["bash", TPU], cwd=directory, env=found, timeout=60, check=False).returncode


@pytest.mark.parametrize(
    ("attempts", "end"),
    [
        (["75 75", "134 137", "143 75", "- 75", "- -", "0 -", "0 0"], 0),
        (["75", "1"], 1),
        (["75 70 75"], 70),
        (["- 2"], 2),
        (["75", "75", "75"], 75),
    ],
)
def test_cloud_tpu_starts_again_until_complete(attempts, end, tmp_path):
    assert cloud_tpu(tmp_path, attempts) == end
    assert (tmp_path / "attempts").read_text() == ""
    calls = [call for call in (tmp_path / "calls").read_text().splitlines() if "tpu-vm ssh" in call]
    assert len(calls) == len(attempts)
    assert all("--worker=all" in call for call in calls)
    assert 'multihost.start="cluster"' in (tmp_path / "arguments").read_text()


def test_cloud_tpu_makes_a_preempted_slice_again(tmp_path):
    assert cloud_tpu(tmp_path, ["0"], "PREEMPTED", "SUSPENDED", TYPE="v4-32", VERSION="v") == 0
    assert "--accelerator-type v4-32 --runtime-version v --spot" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("request_state", ["SUSPENDED", "FAILED"])
def test_cloud_tpu_says_that_there_is_no_slice(request_state, tmp_path):
    assert cloud_tpu(tmp_path, ["0"], "PREEMPTED", request_state) == 75
    calls = (tmp_path / "calls").read_text()
    assert not {"delete", "create", "ssh"} & set(calls.split())


# Kubernetes.


# The fields that Kubernetes knows, of those that are of use here, below each field; "" is the document.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name"},
    "Service": {"clusterIP", "publishNotReadyAddresses", "selector"},
    "selector": {"batch.kubernetes.io/job-name"},
    "JobSet": {"network", "failurePolicy", "replicatedJobs"},
    "network": {"enableDNSHostnames"},
    "failurePolicy": {"maxRestarts", "rules"},
    "failurePolicy.rules": {"name", "action", "onJobFailureReasons"},
    "replicatedJobs": {"name", "replicas", "template"},
    "template": {"spec"},
    "Job": {"completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy", "template"},
    "podFailurePolicy": {"rules"},
    "podFailurePolicy.rules": {"action", "onExitCodes", "onPodConditions"},
    "onExitCodes": {"containerName", "operator", "values"},
    "onPodConditions": {"type", "status"},
    "Pod": {
        "restartPolicy",
        "shareProcessNamespace",
        "subdomain",
        "terminationGracePeriodSeconds",
        "containers",
        "volumes",
    },
    "containers": {"name", "image", "env", "ports", "command", "args", "volumeMounts"},
    "env": {"name", "value", "valueFrom"},
    "valueFrom": {"fieldRef"},
    "fieldRef": {"fieldPath"},
    "ports": {"containerPort"},
    "volumeMounts": {"name", "mountPath"},
    "volumes": {"name", "persistentVolumeClaim", "emptyDir"},
    "persistentVolumeClaim": {"claimName"},
    "emptyDir": {"medium"},
}


def check_fields(node, field, kind):
    """Every mapping has known fields only; the spec of a template is that of a Job in a JobSet, and of a Pod in a Job."""
    for each in node if isinstance(node, list) else [node]:
        if not isinstance(each, dict):
            continue
        assert set(each) <= FIELDS[field], field
        for name, value in each.items():
            if name == "template":
                check_fields(value, name, {"JobSet": "Job", "Job": "Pod"}[kind])
            elif name == "spec":
                check_fields(value, kind, kind)
            else:
                check_fields(value, f"{field}.rules" if name == "rules" else name, kind)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_fields(path):
    for document in documents(path):
        check_fields(document, "", document["kind"])


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
        assert {code for code, action in by_code.items() if action == "Ignore"} == AGAIN
        conditions = [each for rule in rules for each in rule.get("onPodConditions", ())]
        assert conditions == [{"type": "DisruptionTarget", "status": "True"}]
        assert pod["shareProcessNamespace"], "process 1 of a namespace cannot be aborted with 134"
        script = container(job)["args"][0]
        limit = int(re.search(r"preemption_seconds=(\d+)", script)[1])
        assert pod["terminationGracePeriodSeconds"] > limit


def action(job, code, *, evicted):
    """What Kubernetes does about a pod that failed: the first rule that fits decides, and without one it is counted."""
    for rule in job["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {"values": ()})["values"] or (
            evicted and "onPodConditions" in rule
        ):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_decides_by_the_pod_that_was_first(path):
    (job,) = jobs(path)
    anew = path.name == "kubernetes-jobset.yaml"  # makes all pods anew, for which the job must fail
    assert (job["backoffLimit"] == 0) == anew
    for code in FOR_GOOD:
        assert action(job, code, evicted=False) == action(job, code, evicted=True) == "FailJob"
    for code in AGAIN:
        assert action(job, code, evicted=False) == "Ignore", "it only followed another"
    for code in AGAIN | {KILLED}:
        assert action(job, code, evicted=True) == ("Count" if anew else "Ignore")
    assert action(job, KILLED, evicted=False) == "Count", "out of memory, say: not for ever"
    assert action(job, errors.PeerLostError.exit_code, evicted=False) == "Count"


def test_a_jobset_ends_for_good_where_a_job_says_so():
    (document,) = documents(DEPLOY / "kubernetes-jobset.yaml")
    policy = document["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_scripts_are_bash_and_give_the_signal_to_datarax(path):
    for job in jobs(path):
        assert container(job)["command"] == ["/bin/bash", "-c"]
        (script,) = container(job)["args"]
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert re.search(r"^exec datarax run ", script, re.MULTILINE)
        claims = {each["name"] for each in job["template"]["spec"]["volumes"]}
        assert {each["name"] for each in container(job)["volumeMounts"]} <= claims


# The guide.

GUIDE = (ROOT / "docs" / "multihost.md").read_text()


@pytest.mark.full
def test_the_program_of_the_guide_is_one_run_in_two_processes_and_goes_on_in_one(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    endless = code.replace("num_epochs=3", "num_epochs=None")
    assert endless != code
    program = tmp_path / "program.py"
    program.write_text(endless.replace("mesh=mesh, save=save", "mesh=mesh, save=save, steps=10**9"))
    metrics = tmp_path / "runs" / "regression" / "metrics.jsonl"

    def run(count):
        port = free_port()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        children = []
        for index in range(count):
            place = {
                multihost.COORDINATOR: f"localhost:{port}",
                multihost.COUNT: str(count),
                multihost.INDEX: str(index),
            }
            children.append(
                subprocess.Popen(
                    [sys.executable, program],
                    cwd=tmp_path,
                    env=environment | place,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return children

    for count in (2, 1):
        before = metrics.read_text() if metrics.exists() else ""
        children = run(count)
        try:
            while not metrics.exists() or metrics.read_text() == before:
                assert all(child.poll() is None for child in children)
                time.sleep(0.05)
            children[-1].send_signal(signal.SIGTERM)
            said = [child.communicate(timeout=120)[1] for child in children]
        finally:
            for child in children:
                child.kill()
        assert [child.returncode for child in children] == [75] * count, said
        assert ("continuing after step" in said[0]) == bool(before)
