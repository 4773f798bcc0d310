"""The files of deploy/serve/ as far as a machine without Docker and Kubernetes can tell; its application on Ray."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request

import jsonschema
import numpy as np
import pytest
import yaml
from helpers.nodes import free_port
from helpers.requests import encoded
from helpers.served import BLOCKED, mean_colour_model
from packaging.requirements import Requirement
from test_deploy import CLUSTER, DEPLOY, ROOT, TEXT, record

from delta_tune.cli.commands import parser

SERVE = DEPLOY / "serve"
FILES = ["Dockerfile", "ray_serve_app.py", "rayservice.yaml", "requirements.txt"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A subset of the CRD kept by hand, as of RayJob in test_deploy.py
RAYSERVICE = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=record(["name"], name=TEXT),
    spec=record(["serveConfigV2", "rayClusterConfig"], serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
)


def names(requirements):
    return {Requirement(each).name for each in requirements}


def requirements():
    lines = (SERVE / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def steps():
    """Instruction → its text, of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (SERVE / "Dockerfile").read_text())
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def step(name):
    (found,) = (text for instruction, text in steps() if instruction == name)
    return found


def service():
    return yaml.safe_load((SERVE / "rayservice.yaml").read_text())


def application():
    (found,) = yaml.safe_load(service()["spec"]["serveConfigV2"])["applications"]
    return found


def test_serve_has_no_other_files():
    assert [path.name for path in sorted(SERVE.iterdir()) if path.name not in ("__pycache__", "model.onnx")] == FILES


def test_requirements_are_the_extra_and_what_the_server_uses_of_the_package():
    extra, own = PROJECT["optional-dependencies"]["serve"], PROJECT["dependencies"]
    assert set(extra) <= set(requirements())
    assert set(requirements()) - set(extra) <= set(own)


def test_the_servers_tests_block_all_that_the_image_lacks():
    missing = names(PROJECT["dependencies"]) - names(requirements())
    assert {name.replace("-", "_") for name in missing} <= set(BLOCKED)


def test_requirements_have_no_torch():
    assert not names(requirements()) & {"torch", "torchvision", "timm", "ray", "optuna"}


def test_image_is_python_slim_and_no_root():
    assert re.fullmatch(r"python:3\.\d+-slim", step("FROM"))
    assert step("USER") == "10001:10001"
    assert [name for name, _ in steps()].index("USER") > max(i for i, (name, _) in enumerate(steps()) if name == "RUN")


def test_image_starts_the_server_by_flags_that_there_are():
    command = json.loads(step("ENTRYPOINT"))
    assert command[:3] == ["python", "-m", "delta_tune"]
    given = parser().parse_args(command[3:])
    assert (given.model, given.host, given.port) == ("/model/model.onnx", "0.0.0.0", int(step("EXPOSE")))


def test_health_check_is_python_that_asks_the_servers_own_address():
    command = json.loads(step("HEALTHCHECK").split("CMD ", 1)[1])
    compile(command[2], "health check", "exec")
    assert f"http://127.0.0.1:{step('EXPOSE')}/health/ready" in command[2]


def test_image_copies_what_there_is():
    copied = [shlex.split(text)[:-1] for name, text in steps() if name == "COPY"]
    missing = {path for paths in copied for path in paths if not (ROOT / path).exists()}
    assert missing <= {"deploy/serve/model.onnx"}


@pytest.mark.parametrize("name", ["Dockerfile", "rayservice.yaml"])
def test_commands_that_the_headers_tell_parse(name):
    text = (SERVE / name).read_text()
    (command,) = re.findall(r"python -m delta_tune (export .+)", text)
    assert str(parser().parse_args(shlex.split(command)).output) == "deploy/serve/model.onnx"


def test_rayservice_has_the_fields_of_the_resource():
    jsonschema.validate(service(), RAYSERVICE)


def test_rayservice_application_is_one_that_ray_serve_takes():
    schema = pytest.importorskip("ray.serve.schema")
    found = schema.ServeApplicationSchema.model_validate(application())
    assert (found.import_path, found.route_prefix) == ("ray_serve_app:build", "/")


def test_rayservice_replicas_fit_into_a_worker():
    spec = service()["spec"]["rayClusterConfig"]
    (group,), (deployment,) = spec["workerGroupSpecs"], application()["deployments"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert cpus == deployment["ray_actor_options"]["num_cpus"] == application()["args"]["threads"]
    assert group["maxReplicas"] == deployment["autoscaling_config"]["max_replicas"]


def test_rayservice_token_is_the_secret_that_its_header_creates():
    text = (SERVE / "rayservice.yaml").read_text()
    secret = service()["spec"]["rayClusterConfig"]["authOptions"]["secretName"]
    assert re.findall(r"kubectl create secret generic (\S+)", text) == [secret]


RUN = """
import sys
import ray
from ray import serve
from ray_serve_app import build
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build({"model": sys.argv[1], "threads": 1}), route_prefix="/")
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.cluster
def test_ray_serve_answers_as_the_server_does(tmp_path):
    pytest.importorskip("ray.serve")
    port, file = free_port(), mean_colour_model(tmp_path / "tiny.onnx")
    command = [sys.executable, "-c", RUN, str(file), str(port)]
    with subprocess.Popen(
        command, cwd=SERVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert any("ready" in line for line in process.stdout)
            photo = encoded(np.full((20, 20, 3), (200, 0, 0), dtype=np.uint8))
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict", photo, {"Content-Type": "image/png"})
            with urllib.request.urlopen(asked, timeout=60) as answer:
                (row,) = json.load(answer)["predictions"]
        finally:
            process.stdin.close()
            process.wait(60)
    assert row["label"] == "red"
