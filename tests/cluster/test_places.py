"""Where it runs: every manifest, rendered with a user's values, is what its schema allows and means what we say."""

from __future__ import annotations

import json
import re
import shlex
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import deepshadows
from deepshadows.cli import VERBS

CLUSTER = Path(__file__).parents[2] / "cluster"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
KUBERNETES = "1.34"
SCHEMA = json.loads((CLUSTER / "kuberay" / "schema.json").read_text())
COMMANDS = {
    "classify": "classify --input s3://survey/tiles --detections 's3://survey/my d.parquet' --output s3://survey/run",
    "train": "train --cutouts s3://survey/shards --output s3://survey/network --workers 4 --gpus",
    "reprocess": "reprocess --input s3://survey/tiles --detections s3://survey/d.parquet --catalog s3://survey/lsbg",
    "publish": "publish --run s3://survey/run --catalog s3://survey/lsbg",
}
MINE = {
    "NAMESPACE": "lsst",
    "IMAGE": "host:5000/me/deepshadows@sha256:0f",
    "GPU_WORKERS_MIN": "12",
    "SPOT_VALUE": "true",
}


def defaults() -> dict[str, str]:
    """values.env as a shell reads it."""
    words = shlex.split((CLUSTER / "kuberay" / "values.env").read_text(), comments=True)
    return dict(word.split("=", 1) for word in words)


def rendered(path: Path, **values: str) -> list[dict[str, Any]]:
    """The documents of a manifest; a placeholder without a value is an error."""
    text = string.Template(path.read_text()).substitute({**defaults(), **values})
    return list(yaml.safe_load_all(text))


def check(document: dict[str, Any]) -> None:
    """Against Kubernetes' own schemas where these know the kind; the pod templates of the others too."""
    if not document["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/")):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """Every `template` at any depth."""
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        if name == "template":
            yield inner
        else:
            yield from pod_templates(inner)


def node_terms(template: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What a pod asks of its node: any of these terms, all of whose expressions hold."""
    wanted = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [term["matchExpressions"] for term in wanted["nodeSelectorTerms"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("verb", COMMANDS)
def test_manifests_fit_their_schema_with_a_user_s_values(path: Path, verb: str) -> None:
    command = f"python -m deepshadows {COMMANDS[verb]}"
    for document in rendered(path, JOB=verb, COMMAND=command, **MINE):
        check(document)
        assert document["metadata"]["namespace"] == "lsst"
        job = document["spec"].get("jobTemplate", document["spec"]) if "spec" in document else {}
        if "entrypoint" in job:
            assert job["entrypoint"] == command
        cluster = job.get("rayClusterSpec", job)
        if "workerGroupSpecs" in cluster:
            assert cluster["workerGroupSpecs"][0]["minReplicas"] == 12


def test_the_schemas_refuse_what_is_wrong() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (good,) = rendered(CLUSTER / "kuberay" / "rayjob.yaml")
    for wrong in (
        lambda job: job["spec"].update(enterpoint="x"),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tocken"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: job["metadata"].update(namespace="${NAMESPACE}"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(nodeSelectors={}),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].pop("name"),
    ):
        document = json.loads(json.dumps(good))
        wrong(document)
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(document)
    *_, cron = rendered(CLUSTER / "kuberay" / "cronjob.yaml")
    cron["spec"]["concurencyPolicy"] = cron["spec"].pop("concurrencyPolicy")
    with pytest.raises(kubernetes_validate.ValidationError, match="concurencyPolicy"):
        check(cron)


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_commands_of_the_examples_are_commands(verb: str) -> None:
    words = shlex.split(COMMANDS[verb])
    assert words[0] in VERBS
    assert f"python -m deepshadows {verb} " in (CLUSTER / "kuberay" / "values.env").read_text()


def test_one_cluster_in_all_three_manifests() -> None:
    folder = CLUSTER / "kuberay"
    (alone,), (job,), (cron,) = (rendered(folder / f"{name}.yaml") for name in ("raycluster", "rayjob", "raycronjob"))
    assert job["spec"]["rayClusterSpec"] == alone["spec"]
    assert cron["spec"]["jobTemplate"] == job["spec"]


def test_the_cluster_is_what_the_page_says() -> None:
    (document,) = rendered(CLUSTER / "kuberay" / "raycluster.yaml")
    spec = document["spec"]
    pinned = re.search(r"^ray==(.+)$", (CLUSTER / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert spec["rayVersion"] == pinned[1]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu, cpu = spec["workerGroupSpecs"]
    assert gpu["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    assert "nodeSelector" not in cpu["template"]["spec"], "CPU workers stand on either"
    ((term,),) = node_terms(spec["headGroupSpec"]["template"])
    assert term == {"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]}
    for group in (spec["headGroupSpec"], gpu, cpu):
        assert group["template"]["metadata"]["labels"] == {"app.kubernetes.io/name": "deepshadows"}
        assert group["rayStartParams"]["metrics-export-port"] == "8080"
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"name": "metrics", "containerPort": 8080} in container["ports"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    (policy,) = rendered(CLUSTER / "kuberay" / "network-policy.yaml")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "deepshadows"}
    _, dashboard, metrics = policy["spec"]["ingress"]
    assert dashboard["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert metrics["ports"] == [{"protocol": "TCP", "port": 8080}]
    (monitor,) = rendered(CLUSTER / "kuberay" / "podmonitor.yaml")
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]


def test_the_scheduled_run_may_not_overlap() -> None:
    *_, cron = rendered(CLUSTER / "kuberay" / "cronjob.yaml")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


KUBECTL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
    create*) echo rayjob.ray.io/deepshadows-x1 ;;
    *jobDeploymentStatus*) [ "$(grep -c jobDeploymentStatus "$CALLS")" -gt 2 ] && printf %s "$END" || printf Running ;;
    *jobStatus*) printf %s "$STATUS" ;;
esac
"""


@pytest.mark.parametrize(
    ("end", "status", "code"), [("Complete", "SUCCEEDED", 0), ("Complete", "FAILED", 1), ("Failed", "", 1)]
)
def test_the_schedule_waits_for_the_end_of_its_run(tmp_path: Path, end: str, status: str, code: int) -> None:
    """The script as it is, with a kubectl that tells of a job that runs for two looks."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": f"{tmp_path}/calls", "END": end, "STATUS": status, "POLL_S": "0",
    }  # fmt: skip
    script = CLUSTER / "kuberay" / "create_and_wait.sh"
    done = subprocess.run(
        ["sh", script, "/job/rayjob.yaml"], env=environment, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "create --filename /job/rayjob.yaml --output name"
    assert sum("jobDeploymentStatus" in call for call in calls) == 3


def test_the_launcher_of_ray_takes_the_file_for_aws() -> None:
    values = {
        "IMAGE": "host/deepshadows:1", "REGION": "eu-west-1", "WORKERS": "3",
        "INSTANCE_PROFILE": "arn:aws:iam::123456789012:instance-profile/x",
    }  # fmt: skip
    text = string.Template((CLUSTER / "aws.yaml").read_text()).substitute(values)
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    head, spot = (config["available_node_types"][name] for name in ("head", "gpu-spot"))
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert (spot["min_workers"], config["max_workers"]) == (3, 3)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert not config["setup_commands"]


def test_the_image_is_that_of_the_constraints_and_nobody_s_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [stage.split("\n", 1)[0] for stage in stages] == ["python:3.11-slim AS base", "base AS cpu", "base AS cuda"]
    for stage in stages[1:]:
        assert "-c cluster/constraints.txt ." in stage
        assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["1000:100"]
        assert not re.search(r"^(RUN|COPY)", stage.split("USER", 1)[1], re.MULTILINE)
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((CLUSTER.parent / name).exists() for name in source.split())
    assert f"deepshadows:{deepshadows.__version__}" in text


def test_the_image_s_file_holds_what_hadolint_asks() -> None:
    done = subprocess.run(["hadolint", CLUSTER / "Dockerfile"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_hold_what_shellcheck_asks() -> None:
    scripts = [*CLUSTER.rglob("*.sh"), *(path for path in (CLUSTER.parent / ".ci").iterdir() if path.is_file())]
    assert len(scripts) >= 4
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout


def test_the_page_tells_of_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    files = [path for path in CLUSTER.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [path.name for path in files if path.name not in page] == []
