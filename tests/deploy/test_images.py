"""Image, compose file and unit: what can be said of them without an engine and without systemd as the first process. The image
itself is built and run by image.sh."""
import re

import pytest
import yaml
from conftest import BIN, DEPLOY, run

DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose/compose.yml").read_text())


def test_hadolint_finds_nothing():
    done, text = run("hadolint", DEPLOY / "docker/Dockerfile")
    assert done.returncode == 0, text


def test_final_images_are_unprivileged_and_are_probed_by_the_program():
    settings = DOCKERFILE.split("AS settings")[1].split("\nFROM")[0]
    assert "USER 65532:65532" in settings
    assert re.search(r"HEALTHCHECK .*CMD \[\"/usr/bin/expertd\", \"probe\"\]", settings)
    finals = re.findall(r"^FROM settings AS (\w+)$", DOCKERFILE, re.M)
    assert set(finals) == {"cpu", "cuda"}
    assert "INSECURE" not in settings.split("ENV")[1]


def test_every_variable_of_the_image_is_a_flag_of_the_server():
    done, text = run(BIN / "expertd", "serve", "--help")
    assert done.returncode == 0
    variables = set(re.findall(r"\b(EXPERTD_[A-Z_]+)[=:]", DOCKERFILE + (DEPLOY / "compose/compose.yml").read_text()))
    flags = {"EXPERTD_" + flag.upper().replace("-", "_") for flag in re.findall(r"--([a-z-]+)", text)}
    assert variables - {"EXPERTD_MODEL"} <= flags and "EXPERTD_CHECKPOINT" in variables


def test_compose_mounts_what_exists_and_publishes_on_loopback_only():
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).is_dir(), volume
    for overlay in ("compose.yml", "cuda.yml"):
        build = yaml.safe_load((DEPLOY / "compose" / overlay).read_text())["services"]["expertd"]["build"]
        assert re.search(rf"^FROM settings AS {build['target']}$", DOCKERFILE, re.M)


def test_prometheus_and_grafana_find_each_other():
    targets = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    assert targets == [{"targets": ["expertd:9470"]}] and "expertd" in COMPOSE["services"]
    source = yaml.safe_load((DEPLOY / "compose/grafana/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in COMPOSE["services"]


def test_systemd_accepts_the_unit_and_calls_it_hardened(tmp_path):
    unit = tmp_path / "expertd.service"
    unit.write_text((DEPLOY / "systemd/expertd.service").read_text().replace("/usr/bin/expertd", str(BIN / "expertd")))
    done, text = run("systemd-analyze", "verify", unit)
    assert done.returncode == 0 and text == ""
    done, text = run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)
    assert done.returncode == 0, text  # exposure of at most 2.0 out of 10
    unit.write_text(unit.read_text() + "Hardend=yes\n")
    assert "Hardend" in run("systemd-analyze", "verify", unit)[1]


def test_the_units_configuration_is_one_and_its_drain_fits():
    done, text = run(BIN / "expertd", "serve", "--config", DEPLOY / "systemd/expertd.toml", "--check-config")
    assert done.returncode == 0, text
    values = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    drain_s = (int(values["drain-grace-ms"]) + int(values["drain-timeout-ms"])) / 1000
    unit = (DEPLOY / "systemd/expertd.service").read_text()
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M).group(1)) > drain_s
    assert int(COMPOSE["services"]["expertd"]["stop_grace_period"].rstrip("s")) > drain_s


@pytest.mark.parametrize("script", sorted((DEPLOY / "docker").glob("*.sh")), ids=lambda path: path.name)
def test_the_dockerfile_runs_every_script_of_its_folder(script):
    assert f"deploy/docker/{script.name}" in DOCKERFILE
    assert script.stat().st_mode & 0o111 and run("bash", "-n", script)[0].returncode == 0
