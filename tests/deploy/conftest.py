"""A served layer and a Prometheus that scrapes it, both real, both on loopback."""
import json
import os
import pathlib
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = pathlib.Path(os.environ.get("EXPERTD_BIN", ROOT / "build/release/bin")).resolve()
GOLDEN = ROOT / "tests/data/golden"
PATIENCE_S = 60


def run(*command, **options):
    """The finished process; what it wrote is part of the failure."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=PATIENCE_S, **options)
    return done, done.stdout + done.stderr


def wait_until(ready, what):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if (value := ready()) is not None:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


class Server:
    """`expertd serve` on ports of the system's choice."""

    def __init__(self, folder, *flags):
        self.out = folder / "server.out"
        self.process = subprocess.Popen(
            [BIN / "expertd", "serve", "--checkpoint", GOLDEN / "olmoe", "--listen", "127.0.0.1:0",
             "--metrics-address", "127.0.0.1:0", "--expert-series", "4096", "--log-level", "error", *flags],
            stdout=self.out.open("w"), stderr=subprocess.STDOUT)
        wait_until(lambda: self.said("ready"), "the server's ready")
        self.address = self.said("listening on ")
        self.metrics_address = self.said("metrics on ")

    def said(self, prefix):
        assert self.process.poll() is None, self.out.read_text()
        found = re.search(f"^{prefix}(.*)$", self.out.read_text(), re.M)
        return found and found.group(1)

    def call(self, *flags):
        return run(BIN / "expertd-client", "bench", "--endpoint", self.address, "--rows", "2", "--concurrency", "2",
                   "--warmup-s", "0", *flags)


class Prometheus:
    """Scrapes `target` every half second as job expertd, with the rules of deploy/prometheus."""

    def __init__(self, folder, target):
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
        config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % probe.getsockname()[1]
        self.log = folder / "prometheus.log"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
             f"--web.listen-address={self.address}", "--log.level=warn"],
            stdout=self.log.open("w"), stderr=subprocess.STDOUT)
        wait_until(self.ready, "Prometheus")

    def ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5).read()
        except (urllib.error.URLError, ConnectionError):
            return None

    def api(self, path, **arguments):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            answer = json.load(urllib.request.urlopen(url, timeout=10))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from error
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        return self.api("query", query=expression)["result"]


def stop(process):
    process.terminate()
    return process.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    assert stop(server.process) == 0


@pytest.fixture(scope="session")
def secured_metrics(tmp_path_factory):
    """What a server with a certificate and tokens tells, after a tokens file that it could not use."""
    folder = tmp_path_factory.mktemp("secured")
    certificate, key, tokens = folder / "tls.crt", folder / "tls.key", folder / "tokens"
    done, text = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", "/CN=localhost",
                     "-keyout", key, "-out", certificate)
    assert done.returncode == 0, text
    tokens.write_text("plain:a-token-for-tests infer somebody\n")
    server = Server(folder, "--tls-cert", str(certificate), "--tls-key", str(key), "--tokens-file", str(tokens))
    tokens.write_text("no token\n")

    def metrics():
        text = urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10).read().decode()
        return text if 'result="failed"' in text else None

    yield wait_until(metrics, "the failed reload in the metrics")
    assert stop(server.process) == 0


@pytest.fixture(scope="session")
def prometheus(server, tmp_path_factory):
    """Knows a few seconds of traffic, unary and on streams."""
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server.metrics_address)
    wait_until(lambda: prometheus.query('up{job="expertd"} == 1') or None, "the first scrape")
    for mode in ("unary", "stream") * 2:
        done, text = server.call("--mode", mode, "--duration-s", "1")
        assert done.returncode == 0, text
    wait_until(lambda: prometheus.query("job:expertd_request_failures:ratio_rate6h") or None, "the rules' evaluation")
    yield prometheus
    stop(prometheus.process)
