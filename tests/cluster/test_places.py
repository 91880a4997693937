"""Where it runs: every manifest, rendered with a user's values, is what its schema allows and means what we say."""

from __future__ import annotations

import json
import re
import shlex
import string
import subprocess
import sys
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


def substituted(path: Path, **values: str) -> str:
    """A manifest as envsubst gives it; a placeholder without a value is an error."""
    return string.Template(path.read_text()).substitute({**defaults(), **values})


def rendered(path: Path, **values: str) -> list[dict[str, Any]]:
    """The documents of a manifest."""
    return list(yaml.safe_load_all(substituted(path, **values)))


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
    assert cron["spec"]["jobTemplate"] == {**job["spec"], "backoffLimit": 0}


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


ENVSUBST = "print(string.Template(sys.stdin.read()).substitute(os.environ))"
KUBECTL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
    create*) cat > "$CREATED" && echo rayjob.ray.io/deepshadows-x1 ;;
    get*) look=$(grep -c ^get "$CALLS"); eval "printf %s \\"\\${LOOK_$look}\\""; eval "exit \\${CODE_$look:-0}" ;;
esac
"""


def waited(folder: Path, **looks: str) -> tuple[int, list[str], dict[str, Any]]:
    """The script as it is, with a kubectl that tells `looks`: its exit code, what it asked and the RayJob it made."""
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    (folder / "rayjob.yaml").write_text(substituted(CLUSTER / "kuberay" / "rayjob.yaml", RETRIES="0"))
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin", "CALLS": f"{folder}/calls", "CREATED": f"{folder}/created", "POLL_S": "0",
        "OWNER_NAME": "deepshadows-reprocess-29", "OWNER_UID": "0f-1", **looks,
    }  # fmt: skip
    script = CLUSTER / "kuberay" / "create_and_wait.sh"
    done = subprocess.run(
        ["sh", script, folder / "rayjob.yaml"], env=environment, capture_output=True, timeout=30, check=False
    )
    created = yaml.safe_load((folder / "created").read_text())
    return done.returncode, (folder / "calls").read_text().splitlines(), created


@pytest.mark.parametrize(
    ("end", "code"), [("Complete/SUCCEEDED", 0), ("Complete/FAILED", 1), ("Failed/", 1), ("ValidationFailed/", 1)]
)
def test_the_schedule_waits_for_the_end_of_its_run(tmp_path: Path, end: str, code: int) -> None:
    found, calls, _ = waited(tmp_path, LOOK_1="/", LOOK_2="Running/RUNNING", LOOK_3=end)
    assert (found, len(calls)) == (code, 1 + 3)
    assert calls[0] == "create --filename - --output name"


def test_the_schedule_ends_with_an_error_when_its_run_was_deleted(tmp_path: Path) -> None:
    """`--ignore-not-found` prints nothing then, with exit code 0; an API server that is away is another thing."""
    found, calls, _ = waited(tmp_path, LOOK_1="Running/RUNNING", LOOK_2="", CODE_2="1", LOOK_3="")
    assert (found, len(calls)) == (1, 1 + 3)
    assert all("--ignore-not-found" in call for call in calls[1:])


def test_a_finished_run_goes_with_the_history_of_its_schedule(tmp_path: Path) -> None:
    """The RayJob is that of the manifest, owned by the Job, whose name and id come from its own labels."""
    _, _, created = waited(tmp_path, LOOK_1="Complete/SUCCEEDED")
    (owner,) = created["metadata"].pop("ownerReferences")
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "deepshadows-reprocess-29", "uid": "0f-1"}
    assert [created] == rendered(CLUSTER / "kuberay" / "rayjob.yaml", RETRIES="0")
    *_, cron = rendered(CLUSTER / "kuberay" / "cronjob.yaml")
    assert cron["spec"]["successfulJobsHistoryLimit"] == cron["spec"]["failedJobsHistoryLimit"] == 3
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"]}
    assert given == {
        "OWNER_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
        "OWNER_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }


def test_a_night_that_hangs_ends_before_the_next_one() -> None:
    (job,), (alone,) = (rendered(CLUSTER / "kuberay" / f"{name}.yaml") for name in ("rayjob", "raycronjob"))
    *_, cron = rendered(CLUSTER / "kuberay" / "cronjob.yaml")
    for spec in (job["spec"], alone["spec"]["jobTemplate"], cron["spec"]["jobTemplate"]["spec"]):
        assert 0 < spec["activeDeadlineSeconds"] < 24 * 3600
    (longer,) = rendered(CLUSTER / "kuberay" / "rayjob.yaml", DEADLINE_S="200000")
    assert longer["spec"]["activeDeadlineSeconds"] == 200_000


def test_a_scheduled_run_is_not_repeated(tmp_path: Path) -> None:
    """By the command of the manifest's first lines, as a shell runs it with the values of values.env."""
    (once,) = rendered(CLUSTER / "kuberay" / "rayjob.yaml")
    assert once["spec"]["backoffLimit"] == 1, "a lost head"
    (alone,) = rendered(CLUSTER / "kuberay" / "raycronjob.yaml", RETRIES="1")
    assert alone["spec"]["jobTemplate"]["backoffLimit"] == 0
    text = (CLUSTER / "kuberay" / "cronjob.yaml").read_text()
    command = re.search(r"^#   (.*envsubst < cluster/kuberay/rayjob.yaml) > rayjob.yaml$", text, re.MULTILINE)
    assert command is not None
    (tmp_path / "envsubst").write_text(f"#!{sys.executable}\nimport os, string, sys\n" + ENVSUBST)
    (tmp_path / "envsubst").chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", f"set -a; . cluster/kuberay/values.env; set +a; {command[1]}"],
        cwd=CLUSTER.parent, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert yaml.safe_load(done.stdout)["spec"]["backoffLimit"] == 0


def test_the_launcher_of_ray_takes_the_file_for_aws() -> None:
    values = {
        "IMAGE": "host/deepshadows:1", "REGION": "eu-west-1", "WORKERS": "3",
        "HEAD_PROFILE": "arn:aws:iam::123456789012:instance-profile/head",
        "WORKER_PROFILE": "arn:aws:iam::123456789012:instance-profile/worker",
    }  # fmt: skip
    text = string.Template((CLUSTER / "aws.yaml").read_text()).substitute(values)
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    head, spot = (config["available_node_types"][name] for name in ("head", "gpu-spot"))
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    profiles = [each["node_config"]["IamInstanceProfile"]["Arn"].rsplit("/")[-1] for each in (head, spot)]
    assert profiles == ["head", "worker"], "no worker may start machines"
    page = (CLUSTER / "README.md").read_text()
    assert [name for name in values if f"{name}=" not in page] == [], "the page sets every value"
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


def test_the_page_makes_what_the_values_name() -> None:
    """Namespace, service account and Secrets: KubeRay makes none of them."""
    page, values = (CLUSTER / "README.md").read_text(), defaults()
    assert f"$ kubectl create namespace {values['NAMESPACE']}\n" in page
    kinds = {"SERVICE_ACCOUNT": "serviceaccount", "S3_SECRET": "secret generic", "TOKEN_SECRET": "secret generic"}
    for name, kind in kinds.items():
        wanted = f"$ kubectl -n {values['NAMESPACE']} create {kind} {values[name]}"
        assert re.search(f"^{re.escape(wanted)}( |$)", page, re.MULTILINE), wanted
    (cluster,) = rendered(CLUSTER / "kuberay" / "raycluster.yaml")
    assert f"port-forward service/{cluster['metadata']['name']}-head-svc 8265" in page
    assert f"get secret {values['TOKEN_SECRET']} -o jsonpath='{{.data.auth_token}}'" in page


def test_the_line_for_cron_gives_the_program_its_credentials(tmp_path: Path) -> None:
    """The line as it stands, in a folder of this test, with the one file that Kubernetes and systemd read too."""
    line = re.search(r"^15 3 \* \* \*  (.+)$", (CLUSTER / "README.md").read_text(), re.MULTILINE)
    assert line is not None
    (tmp_path / "s3.env").write_text("AWS_ACCESS_KEY_ID=me\nAWS_SECRET_ACCESS_KEY=a/b+c=\n")
    program = tmp_path / "venv" / "bin" / "deepshadows"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $*"\n')
    program.chmod(0o755)
    command = line[1].replace("/srv/survey", shlex.quote(str(tmp_path)))
    subprocess.run(["sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, timeout=30, check=True)
    assert (tmp_path / "reprocess.log").read_text() == "me a/b+c= reprocess --config reprocess.toml --json\n"


@pytest.mark.parametrize(
    ("flags", "given", "port"),
    [([], {}, 8265), (["--num-cpus=8", "--dashboard-port=9"], {"RAY_AUTH_TOKEN_PATH": "/a b/token"}, 9)],
)
def test_local_sh_prints_what_another_shell_needs(
    tmp_path: Path, flags: list[str], given: dict[str, str], port: int
) -> None:
    """With a `ray` that only tells its words; what it prints is run in a shell."""
    (tmp_path / "ray").write_text("#!/bin/sh\necho ray: $*\n")
    (tmp_path / "ray").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/home/me"}
    done = subprocess.run(
        ["sh", CLUSTER / "local.sh", *flags],
        env={**environment, **given}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    _, export, submit, ray = done.stdout.splitlines()
    assert ray.startswith("ray: start --head") and ray.endswith(" ".join(flags))
    assert submit == f"  deepshadows submit VERB ... --address http://127.0.0.1:{port}"
    tell = [sys.executable, "-c", "import os; print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_AUTH_TOKEN_PATH'])"]
    told = subprocess.run(
        ["sh", "-c", f"{export}\n{shlex.join(tell)}"],
        env=environment, capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    assert told == f"token {given.get('RAY_AUTH_TOKEN_PATH', '/home/me/.ray/auth_token')}\n"
    page = (CLUSTER / "README.md").read_text()
    if not flags:
        assert "".join(f"{line}\n" for line in ("$ sh cluster/local.sh", *done.stdout.splitlines()[:3])) in page


def test_the_cost_is_that_of_the_figures() -> None:
    """Hours of the page from its rates, and its rates are those of README."""
    page, figures = (CLUSTER / "README.md").read_text(), (CLUSTER.parent / "README.md").read_text()
    found = re.search(r"does ([\d,]+) cut-outs/s from disk .* = (\d+) hours; (\d+) hours from S3, at ([\d,]+)", page)
    assert found is not None
    disk, disk_hours, s3_hours, s3 = found.groups()
    for rate, hours in ((disk, disk_hours), (s3, s3_hours)):
        assert int(hours) == round(1e9 / int(rate.replace(",", "")) / 3600)
    assert f"| **`deepshadows classify`** | {disk} |" in figures
    assert re.search(rf"and {s3} from\s+S3", figures)
    row = re.search(r"a published row (\d+) bytes", page)
    assert row is not None
    assert f"{row[1]} B a row" in figures
