"""A real `expertd serve` on loopback with golden checkpoints, and their reference outputs."""
import json
import os
import pathlib
import struct
import subprocess
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
BINARY = pathlib.Path(os.environ.get("EXPERTD_BIN", ROOT / "build" / "release" / "bin")) / "expertd"
NUMPY_TYPES = {"F32": "<f4", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
START_S = 60

# The engine rounds the activation to bf16, the reference does not; as in tests/integration.
TOLERANCE = 5e-3


def assert_close(ours, reference, tolerance=TOLERANCE):
    """Root-mean-square error relative to the reference, the whole tensor at once."""
    assert ours.shape == reference.shape
    error = np.linalg.norm(ours.astype(np.float64) - reference) / np.linalg.norm(reference)
    assert error <= tolerance, f"relative error {error:.2e}, at most {tolerance:.0e}"


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(body[slice(*t["data_offsets"])], NUMPY_TYPES[t["dtype"]]).reshape(t["shape"]) for name, t in header.items()
    }


class Server:
    """`expertd serve` as its own process; addresses as it printed them."""

    def __init__(self, folder, *flags, name="server"):
        self.out, self.log = folder / f"{name}.out", folder / f"{name}.log"
        command = [str(BINARY), "serve", "--listen", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", "--health-address", "127.0.0.1:0",
                   "--drain-grace-ms", "0", *map(str, flags)]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=self.out.open("w"), stderr=self.log.open("w"))
        deadline = time.monotonic() + START_S
        while "ready" not in self.out.read_text().split("\n"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"{command} did not start: {self.log.read_text()}")
            time.sleep(0.02)
        lines = [line.partition(" on ") for line in self.out.read_text().splitlines()]
        self.addresses = {what: address for what, _, address in lines}
        self.endpoint = self.addresses["listening"]

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


def serve_golden(folder, *families, flags=()):
    checkpoints = [word for family in families for word in ("--checkpoint", f"{family}={GOLDEN / family}")]
    return Server(folder, *checkpoints, *flags)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = serve_golden(tmp_path_factory.mktemp("serve"), "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def slow_server(tmp_path_factory):
    """Batches wait 300 ms for company, and few rows may wait: overload, deadlines and cancellation at will."""
    flags = ("--batch-window-us", 300000, "--max-queued-rows", 64, "--max-rows-per-request", 64)
    running = serve_golden(tmp_path_factory.mktemp("slow"), "mixtral", flags=flags)
    yield running
    running.stop()


@pytest.fixture(params=[("mixtral", 0), ("qwen3_moe", 0), ("deepseek_v3", 1), ("gpt_oss", 0)], ids=lambda p: p[0])
def golden(request):
    family, layer = request.param
    io = read_safetensors(GOLDEN / family / "io.safetensors")
    return family, layer, io["hidden_states"], {name.rpartition(".")[0]: value for name, value in io.items() if "." in name}
