"""The Helm chart, rendered by Helm's own engine (helm-python-sdk) and held against Kubernetes' schemas. No cluster: what only a
cluster can tell (admission, scheduling, the operators' resources) is not tested here."""
import copy
import pathlib
import re

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from conftest import BIN, DEPLOY, run

CHART = DEPLOY / "helm/expertd"
KUBERNETES = "1.34"
# Kinds of operators, which Kubernetes' own schemas do not know.
FOREIGN_KINDS = {"PodMonitor", "PrometheusRule", "ScaledObject"}
EVERYTHING = {
    "pools": {"gpu": {"enabled": True, "autoscaling": {"type": "keda"}, "runtimeClassName": "nvidia"},
              "cpu": {"autoscaling": {"type": "hpa", "queueDelaySeconds": 0.0005},
                      "config": {"max-queued-rows": 16777216, "refuse-non-finite": True}}},
    "tls": {"secretName": "moe-tls", "clientCA": True}, "tokens": {"secretName": "moe-tokens"}, "insecure": False,
    "podMonitor": {"enabled": True, "tlsConfig": {"serverName": "moe"}}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True},
}


def render(values=None, name="moe"):
    """{(kind, name): object} of everything that the chart installs."""
    files = helm.Chart.load(CHART).render(values or {}, name=name, namespace="inference")
    documents = [d for path, text in files.items() if path.endswith(".yaml") for d in yaml.safe_load_all(text) if d]
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


def merged(base, **changes):
    values = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = values
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return values


def test_lint_finds_nothing_but_the_missing_icon():
    report = helm.lint(CHART, strict=True)
    assert not report["errors"]
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", [{}, EVERYTHING, {"model": {"existingClaim": "", "volume": {"hostPath": {"path": "/srv"}}}}],
                         ids=["defaults", "everything", "another volume"])
def test_what_it_renders_is_what_kubernetes_takes(values):
    objects = render(values)
    assert objects
    for (kind, _), document in objects.items():
        if kind not in FOREIGN_KINDS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schemas_would_notice_a_wrong_field():
    broken = render()[("StatefulSet", "moe-expertd-cpu")]
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("path, value", [
    ("pools__cpu__replicas", -1),
    ("pools__cpu__replica", 1),
    ("pools__Upper__replicas", 1),
    ("pools__cpu__config", {"listen": "0.0.0.0:1"}),
    ("pools__cpu__config", {"drain-timeout-ms": 0}),
    ("pools__cpu__config", {"threads": 1.5}),
    ("pools__cpu__image", {"flavour": "rocm"}),
    ("pools__cpu__autoscaling", {"type": "vpa"}),
    ("poolDefaults__preStopSeconds", -1),
    ("model", {"existingClaim": "a", "volume": {"emptyDir": {}}}),
    ("model", {"existingClaim": "", "volume": {}}),
    ("podMonitor__interval", "soon"),
    ("insecure", False),
    ("pools__cpu__config", {"tls-cert": "/somewhere"}),
    ("unknown", 1),
])
def test_the_schema_refuses(path, value):
    chart = helm.Chart.load(CHART)
    with pytest.raises(helm.HelmError):
        chart.validate_schema(chart.merge_values(merged({}, **{path: value})))


def statefulset(values, pool="cpu"):
    return render(values)[("StatefulSet", f"moe-expertd-{pool}")]["spec"]


def container_of(values, pool="cpu"):
    return statefulset(values, pool)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("pre_stop, grace_ms, timeout_ms", [(5, 1000, 30000), (0, 0, 1), (20, 2500, 120001)])
def test_a_pod_is_given_longer_than_its_drain_takes(pre_stop, grace_ms, timeout_ms):
    values = merged({}, pools__cpu__preStopSeconds=pre_stop,
                    pools__cpu__config={"drain-grace-ms": grace_ms, "drain-timeout-ms": timeout_ms})
    pod = statefulset(values)["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > pre_stop + (grace_ms + timeout_ms) / 1000
    hook = pod["containers"][0].get("lifecycle")
    assert hook == ({"preStop": {"sleep": {"seconds": pre_stop}}} if pre_stop else None)


def test_flags_become_variables_as_they_were_written():
    env = {e["name"]: e["value"] for e in container_of(EVERYTHING)["env"]}
    assert env["EXPERTD_MAX_QUEUED_ROWS"] == "16777216"
    assert env["EXPERTD_REFUSE_NON_FINITE"] == "true"
    assert env["EXPERTD_DEVICE"] == "cpu" and env["EXPERTD_CHECKPOINT"] == "/model"
    assert {e["name"]: e["value"] for e in container_of(EVERYTHING, "gpu")["env"]}["EXPERTD_DEVICE"] == "cuda:0"


def test_every_variable_is_a_flag_of_the_server():
    done, text = run(BIN / "expertd", "serve", "--help")
    flags = {"EXPERTD_" + flag.upper().replace("-", "_") for flag in re.findall(r"--([a-z-]+)", text)}
    assert {e["name"] for pool in ("cpu", "gpu") for e in container_of(EVERYTHING, pool)["env"]} <= flags


def test_secrets_are_mounted_where_the_variables_look():
    pod = statefulset(EVERYTHING)["template"]["spec"]
    env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    for variable, secret in (("TLS_CERT", "moe-tls"), ("METRICS_TLS_KEY", "moe-tls"), ("TLS_CLIENT_CA", "moe-tls"), ("TOKENS_FILE", "moe-tokens")):
        folder = env[f"EXPERTD_{variable}"].rsplit("/", 1)[0]
        assert secrets[mounts[folder]] == secret
    assert "EXPERTD_INSECURE" not in env and {e["name"]: e["value"] for e in container_of({})["env"]}["EXPERTD_INSECURE"] == "true"
    monitor = render(EVERYTHING)[("PodMonitor", "moe-expertd")]["spec"]["podMetricsEndpoints"][0]
    assert monitor["scheme"] == "https" and monitor["tlsConfig"] == {"serverName": "moe"}
    assert "scheme" not in render({"podMonitor": {"enabled": True}})[("PodMonitor", "moe-expertd")]["spec"]["podMetricsEndpoints"][0]


def test_probes_ask_the_health_port_for_the_right_things():
    container = container_of({})
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    asked = {probe: container[probe]["grpc"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    live = {"port": ports["health"], "service": "live"}
    assert asked == {"startupProbe": live, "livenessProbe": live, "readinessProbe": {"port": ports["health"]}}


def test_nothing_is_granted_that_is_not_needed():
    for pool in ("cpu", "gpu"):
        pod = statefulset(EVERYTHING, pool)["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        security = pod["containers"][0]["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert all(mount["readOnly"] for mount in pod["containers"][0]["volumeMounts"])
    policy = render()[("NetworkPolicy", "moe-expertd")]["spec"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_every_selector_finds_its_pods_and_no_other_pool():
    objects = render(EVERYTHING)
    pods = {pool: objects[("StatefulSet", f"moe-expertd-{pool}")]["spec"]["template"]["metadata"]["labels"] for pool in ("cpu", "gpu")}

    def found(selector):
        return {pool for pool, labels in pods.items() if selector.items() <= labels.items()}

    for (kind, name), document in objects.items():
        spec = document.get("spec", {})
        if kind == "Service":
            assert found(spec["selector"]) == {"gpu" if "gpu" in name else "cpu"}, name
        if kind in ("PodDisruptionBudget", "StatefulSet"):
            assert found(spec["selector"]["matchLabels"]) == {"gpu" if "gpu" in name else "cpu"}, name
        if kind == "PodMonitor":
            assert found(spec["selector"]["matchLabels"]) == {"cpu", "gpu"}
        if kind == "NetworkPolicy":
            assert found(spec["podSelector"]["matchLabels"]) == {"cpu", "gpu"}
        if kind == "StatefulSet":
            assert ("Service", spec["serviceName"]) in objects
            for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
                assert len(found(spread["labelSelector"]["matchLabels"])) == 1


def test_autoscalers_own_the_number_of_replicas():
    objects = render(EVERYTHING)
    hpa = objects[("HorizontalPodAutoscaler", "moe-expertd-cpu")]["spec"]
    assert hpa["metrics"][0]["pods"]["target"]["averageValue"] == "500u"
    keda = objects[("ScaledObject", "moe-expertd-gpu")]["spec"]
    assert 'pod=~"moe-expertd-gpu-[0-9]+"' in keda["triggers"][0]["metadata"]["query"]
    assert "vector(0)" in keda["triggers"][0]["metadata"]["query"]  # without traffic there is no quantile
    for pool, scaler in (("cpu", hpa), ("gpu", keda)):
        assert "replicas" not in objects[("StatefulSet", f"moe-expertd-{pool}")]["spec"]
        assert scaler["scaleTargetRef"]["name"] == f"moe-expertd-{pool}"
    assert statefulset({})["replicas"] == 2


def test_rules_and_dashboard_arrive_unchanged():
    objects = render(EVERYTHING)
    groups = [group for name in ("recording.yml", "alerts.yml")
              for group in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"]]
    assert objects[("PrometheusRule", "moe-expertd")]["spec"]["groups"] == groups
    dashboard = objects[("ConfigMap", "moe-expertd-dashboard")]
    assert dashboard["data"]["expertd.json"] == (DEPLOY / "grafana/expertd.json").read_text()


def test_a_packaged_chart_is_whole(tmp_path):
    """The links to rules and dashboard are followed when the chart is packaged."""
    archive = helm.package(CHART, destination=tmp_path)
    packaged = helm.Chart.load_archive(pathlib.Path(archive).read_bytes())
    here = helm.Chart.load(CHART)
    assert packaged.render(EVERYTHING, name="moe", namespace="a") == here.render(EVERYTHING, name="moe", namespace="a")
