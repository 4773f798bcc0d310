"""The files of deploy/ as far as a machine without a cloud can tell: nothing here reaches a network or starts a Ray."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from itertools import takewhile
from pathlib import Path

import jsonschema
import pytest
import yaml
from helpers.nodes import free_port
from ray.autoscaler._private.util import prepare_config, validate_config

from delta_tune.cli.launch import parser

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
FILES = ["aws.yaml", "gcp.yaml", "rayjob.yaml", "slurm.sh"]
CLOUDS = ["aws.yaml", "gcp.yaml"]
SLURM = DEPLOY / "slurm.sh"


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def header(name):
    """The comment that a file opens with, its continued lines joined."""
    lines = takewhile(lambda line: line.startswith("#"), (DEPLOY / name).read_text().splitlines())
    return re.sub(r"\\\n *", "", "\n".join(line.removeprefix("#") for line in lines))


def launches(name):
    """The arguments of every `launch.py` that the file tells its user to run, or that it runs itself."""
    text = load(name)["spec"]["entrypoint"] if name == "rayjob.yaml" else header(name)
    return [shlex.split(line) for line in re.findall(r"(?:launch\.py|sbatch deploy/slurm\.sh) (-.+)", text)]


def test_deploy_has_no_other_files():
    assert sorted(path.name for path in DEPLOY.iterdir()) == sorted([*FILES, "serve"])


@pytest.mark.parametrize("name", FILES)
def test_launch_command_parses(name):
    (arguments,) = launches(name)
    assert parser().parse_args(arguments).name == "photos"


@pytest.mark.parametrize("name", FILES)
def test_launch_command_writes_to_shared_storage(name):
    (arguments,) = launches(name)
    out = str(parser().parse_args(arguments).out)
    assert out.startswith({"gcp.yaml": "gs:", "slurm.sh": "/"}.get(name, "s3:"))


@pytest.mark.parametrize("name", FILES)
def test_files_mentioned_exist(name):
    text = (DEPLOY / name).read_text()
    mentioned = set(re.findall(r"\bdeploy/[\w.]*\w|\blaunch\.py|\.gitignore", text))
    assert {f"deploy/{name}", "launch.py"} <= mentioned
    assert not [path for path in mentioned if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", FILES)
def test_extras_mentioned_exist(name):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if "cluster" not in extras:
        pytest.skip("pyproject.toml has no extra `cluster` yet")
    mentioned = re.findall(r"(?:\.|delta-tune)\"?\[([\w,]+)\]", (DEPLOY / name).read_text())
    assert mentioned
    assert {extra for found in mentioned for extra in found.split(",")} <= set(extras)


@pytest.mark.parametrize("name", FILES[:3])
def test_only_one_release_of_ray_is_named(name):
    text = (DEPLOY / name).read_text()
    pinned = re.findall(r"(?:ray==|rayproject/ray:|rayVersion: \"|delta-tune:)(\d+\.\d+\.\d+)", text)
    assert len(pinned) > 1
    assert len(set(pinned)) == 1


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_configuration_passes_rays_validation(name):
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_configuration_that_is_misspelt_is_refused(name):
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(load(name) | {"max_worker": 8}))


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_workers_number_from_none_to_all_concurrent_trials(name):
    config = prepare_config(load(name))
    worker = config["available_node_types"]["gpu_worker"]
    concurrent = parser().parse_args(launches(name)[0]).max_concurrent_trials
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (0, concurrent, concurrent)


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_head_is_no_worker_and_no_spot(name):
    head = prepare_config(load(name))["available_node_types"]["head"]
    assert head["max_workers"] == 0
    assert not {"InstanceMarketOptions", "scheduling", "guestAccelerators"} & head["node_config"].keys()


def test_aws_workers_are_spot():
    config = load("aws.yaml")["available_node_types"]["gpu_worker"]["node_config"]
    assert config["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_gcp_workers_are_spot():
    scheduling = load("gcp.yaml")["available_node_types"]["gpu_worker"]["node_config"]["scheduling"]
    assert scheduling["provisioningModel"] == "SPOT"
    assert not scheduling["automaticRestart"]  # Compute Engine takes nothing else for spot


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_sends_the_checkout_and_the_token(name):
    assert load(name)["file_mounts"] == {"~/delta-tune": ".", "~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("node", ["head", "worker"])
@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_node_starts_with_the_token(name, node):
    start = prepare_config(load(name))[f"{node}_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/auth_token ray start" in start


@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_dashboard_listens_on_loopback(name):
    assert "--dashboard-host=127.0.0.1" in load(name)["head_start_ray_commands"][-1]


@pytest.mark.parametrize("node", ["head", "worker"])
@pytest.mark.parametrize("name", CLOUDS)
def test_cloud_commands_are_bash(name, node):
    config = prepare_config(load(name))
    for command in [*config[f"{node}_setup_commands"], *config[f"{node}_start_ray_commands"]]:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


def record(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
CONTAINER = record(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    envFrom={"type": "array", "items": record(["secretRef"], secretRef=record(["name"], name=TEXT))},
    ports={"type": "array", "items": record(["containerPort"], name=TEXT, containerPort=COUNT)},
    lifecycle=record([], postStart=record([], exec=record(["command"], command={"type": "array", "items": TEXT}))),
    resources=record(["requests", "limits"], requests=TEXTS, limits=TEXTS),
)
TOLERATION = record(
    ["key", "operator", "effect"],
    key=TEXT,
    operator={"enum": ["Exists", "Equal"]},
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD = record(
    ["containers"],
    containers={"type": "array", "items": CONTAINER, "minItems": 1},
    nodeSelector=TEXTS,
    tolerations={"type": "array", "items": TOLERATION},
)
HEAD = {"rayStartParams": TEXTS, "template": record(["spec"], spec=POD)}
WORKERS = HEAD | {"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
CLUSTER = record(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=record([], mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record([], idleTimeoutSeconds=COUNT),
    headGroupSpec=record(["rayStartParams", "template"], **HEAD),
    workerGroupSpecs={"type": "array", "items": record([*WORKERS], **WORKERS)},
)
# A subset of the CRD kept by hand, after KubeRay's API reference (1.6.2): what the manifest uses, and what is required
# there. It finds a misspelt, misplaced or missing field; it does not know every field that KubeRay would take.
RAYJOB = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record(["name"], name=TEXT),
    spec=record(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)


def pods():
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_rayjob_has_the_fields_of_the_resource():
    jsonschema.validate(load("rayjob.yaml"), RAYJOB)


def test_rayjob_with_a_misplaced_field_is_refused():
    job = load("rayjob.yaml")
    job["spec"]["authOptions"] = job["spec"]["rayClusterSpec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOptions"):
        jsonschema.validate(job, RAYJOB)


def test_rayjob_secrets_are_those_that_its_header_creates():
    used = {source["secretRef"]["name"] for pod in pods() for source in pod["containers"][0]["envFrom"]}
    used.add(load("rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"]["secretName"])
    assert used == set(re.findall(r"kubectl create secret generic (\S+)", header("rayjob.yaml")))


def test_rayjob_takes_its_token_from_a_secret():
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"


def test_rayjob_pods_share_one_image():
    assert len({pod["containers"][0]["image"] for pod in pods()}) == 1


def test_rayjob_only_workers_tolerate_spot_nodes():
    head, worker = pods()
    assert "tolerations" not in head
    assert any("spot" in toleration["key"] for toleration in worker["tolerations"])


def test_rayjob_workers_number_from_none_to_all_concurrent_trials():
    (group,) = load("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    concurrent = parser().parse_args(launches("rayjob.yaml")[0]).max_concurrent_trials
    assert (group["minReplicas"], group["maxReplicas"]) == (0, concurrent)


def mps_commands(name):
    """The command with which each GPU node of the file starts NVIDIA's MPS daemon."""
    if name == "rayjob.yaml":
        return [pods()[1]["containers"][0]["lifecycle"]["postStart"]["exec"]["command"][-1]]
    if name == "slurm.sh":
        return re.findall(r"^start_mps='(.+)'$", SLURM.read_text(), re.MULTILINE)
    return [command for command in load(name)["worker_start_ray_commands"] if "mps" in command]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("daemon", [None, "exit 0", "echo it runs already >&2; exit 1"])
def test_gpu_nodes_start_the_mps_daemon_where_there_is_one(name, daemon, tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "bash", "mkdir", "touch"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    if daemon is not None:
        (tmp_path / "bin" / "nvidia-cuda-mps-control").write_text(f"#!/bin/sh\ntouch {tmp_path}/$1\n{daemon}\n")
        (tmp_path / "bin" / "nvidia-cuda-mps-control").chmod(0o755)
    environment = {"PATH": str(tmp_path / "bin"), "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "pipe")}
    (command,) = mps_commands(name)
    subprocess.run(["sh", "-ec", command], env=environment, check=True, capture_output=True)
    assert (tmp_path / "-d").exists() == (daemon is not None)


def test_slurm_script_is_bash():
    subprocess.run(["bash", "-n", SLURM], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_slurm_script_passes_shellcheck():
    subprocess.run(["shellcheck", "--severity=warning", SLURM], check=True)


# Stands for srun, ray and python: it notes how it was called, and whether others could have read the token.
FAKE = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys, time
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
token = os.environ["RAY_AUTH_TOKEN_PATH"]
def note(**more):
    mode = os.stat(token).st_mode & 0o777 if os.path.exists(token) else None
    text = open(token).read() if mode else None
    with open(os.environ["CALLS"], "a") as file:
        call = dict(name=name, arguments=arguments, pid=os.getpid(), mode=mode, token=text, **more)
        print(json.dumps(call), file=file)
if arguments[0] == "-c" and "secrets" in arguments[1]:
    os.execv(sys.executable, ["python", *arguments])
note()
if name == "srun":
    command = arguments[[a.startswith("-") for a in arguments].index(False):]
    os.execvp(command[0], command)
elif name == "ray":
    if "--head" in arguments:
        host, port = (next(a for a in arguments if a.startswith(f)) for f in ("--node-ip-address=", "--port="))
        listening = socket.create_server((host.partition("=")[2], int(port.partition("=")[2])))
    signal.pause()
elif arguments[0] == "-c":
    while open(os.environ["CALLS"]).read().count('"name": "ray"') < min(2, int(os.environ["SLURM_JOB_NUM_NODES"])):
        time.sleep(0.02)
elif os.environ["STATUS"] == "wait":
    try:
        note(ready=True)
        time.sleep(30)
    except KeyboardInterrupt:
        sys.exit(130)
else:
    sys.exit(int(os.environ["STATUS"]))
"""


class Slurm:
    """A job of Slurm's, of which only the first node is real."""

    def __init__(self, folder, status, nodes=4):
        self.home, self.file = folder / "home", folder / "calls"
        self.home.mkdir()
        (folder / "bin").mkdir()
        self.file.touch()
        for name in ("srun", "ray", "python"):
            (folder / "bin" / name).write_text(FAKE)
            (folder / "bin" / name).chmod(0o755)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_PER_TASK": "8",
            "HEAD_IP": "127.0.0.1",
            "HEAD_PORT": str(port),
            "CALLS": str(self.file),
            "STATUS": str(status),
        }
        # SIGINT is ignored in what a shell runs in the background, and so in these tests where they are run so.
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", "bash", SLURM, *launches("slurm.sh")[0]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self):
        _, self.errors = self.process.communicate(timeout=30)
        return self

    @property
    def calls(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def of(self, name, first):
        (found,) = (c["arguments"] for c in self.calls if c["name"] == name and first in c["arguments"])
        return found


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Slurm(tmp_path_factory.mktemp("slurm"), status=3).end()


def test_slurm_job_ends_with_the_status_of_the_study(job):
    assert job.process.returncode == 3, job.errors


def test_slurm_job_starts_the_head_on_its_own_node(job):
    host, port = job.address.split(":")
    head = job.of("ray", "--head")
    assert {f"--node-ip-address={host}", f"--port={port}", "--num-cpus=8", "--block"} <= set(head)


def test_slurm_job_starts_workers_on_all_other_nodes(job):
    step = job.of("srun", "ray")
    assert {"--relative=1", "--nodes=3", "--ntasks=3", "--cpus-per-task=8"} <= set(step[: step.index("ray")])


def test_slurm_job_workers_join_the_head(job):
    step = job.of("srun", "ray")
    assert step[step.index("ray") :] == ["ray", "start", f"--address={job.address}", "--num-cpus=8", "--block"]


def test_slurm_job_hands_its_arguments_to_the_study(job):
    study = job.of("python", "launch.py")
    assert study == ["launch.py", "--address", job.address, *launches("slurm.sh")[0]]


def test_slurm_job_keeps_its_token_from_others(job):
    assert {call["mode"] for call in job.calls} == {0o600}


def test_slurm_job_shows_its_token_in_no_command(job):
    (token,) = {call["token"] for call in job.calls}
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert not [call for call in job.calls if token in " ".join(call["arguments"])]


def test_slurm_job_leaves_no_token(job):
    assert not list((job.home / ".ray").iterdir())


def test_slurm_job_leaves_no_process(job):
    assert not [call for call in job.calls if call["name"] == "ray" and Path(f"/proc/{call['pid']}").exists()]


def test_slurm_job_of_one_node_has_no_workers(tmp_path):
    job = Slurm(tmp_path, status=0, nodes=1).end()
    assert job.process.returncode == 0, job.errors
    assert [call["name"] for call in job.calls] == ["ray", "python"]


def test_slurm_job_that_is_interrupted_interrupts_the_study(tmp_path):
    job = Slurm(tmp_path, status="wait", nodes=1)
    deadline = time.monotonic() + 20
    while not any(call.get("ready") for call in job.calls):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.process.send_signal(signal.SIGINT)
    assert job.end().process.returncode == 130, job.errors
