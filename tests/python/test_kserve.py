"""The open inference protocol through its own client, tritonclient, against the real server."""
import pathlib
import queue
import shutil
import subprocess

import expertd
import numpy as np
import pytest
from conftest import ROOT, assert_close, serve_golden
from expertd import from_bf16

triton = pytest.importorskip("tritonclient.grpc")
ml_dtypes = pytest.importorskip("ml_dtypes")
from google.protobuf import descriptor_pb2  # noqa: E402
from tritonclient.grpc import model_config_pb2, service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException, shared_memory  # noqa: E402

CODES = {"FP32": np.float32, "BF16": ml_dtypes.bfloat16, "INT32": np.int32}


@pytest.fixture(scope="module")
def kserve(tmp_path_factory):
    running = serve_golden(tmp_path_factory.mktemp("kserve"), "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", flags=("--kserve-shared-memory",))
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(kserve):
    with triton.InferenceServerClient(kserve.endpoint) as client:
        yield client


def tensor(name, array):
    code = {np.dtype(kind): code for code, kind in CODES.items()}[array.dtype]
    tensor = triton.InferInput(name, array.shape, code)
    tensor.set_data_from_numpy(array)
    return tensor


def rows_of(count=2, hidden=64):
    return np.linspace(-1, 1, count * hidden, dtype=np.float32).reshape(count, hidden)


def test_our_proto_has_the_published_names_and_numbers(tmp_path):
    if shutil.which("protoc") is None:
        pytest.skip("protoc is not installed")
    out = tmp_path / "descriptors"
    subprocess.run(["protoc", f"-I{ROOT / 'proto'}", "--include_imports", f"--descriptor_set_out={out}", "inference/grpc_service.proto"], cwd=ROOT / "proto", check=True)
    ours = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    theirs = {}
    for module in (service_pb2, model_config_pb2):
        described = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(described)
        theirs.update(facts_of(described))
    mine = {}
    for file in ours.file:
        assert file.package == "inference"
        mine.update(facts_of(file))
    assert len(mine) > 100
    assert {fact: theirs.get(fact) for fact in mine} == mine


def facts_of(file):
    """{what: how}: fields by number, enumerators, methods."""
    facts = {}

    def add(prefix, message):
        for field in message.field:
            facts[prefix, message.name, field.number] = (field.name, field.type, field.label, field.type_name)
        for nested in message.nested_type:
            add((prefix, message.name), nested)

    for message in file.message_type:
        add("", message)
    for enum in file.enum_type:
        facts.update({(enum.name, value.number): value.name for value in enum.value})
    for service in file.service:
        facts.update({(service.name, m.name): (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in service.method})
    return facts


def test_server_and_models_are_described(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("mixtral/0", "1")
    assert not client.is_model_ready("mixtral/1") and not client.is_model_ready("mixtral/0", "2")
    server = client.get_server_metadata()
    assert server.name == "expertd" and {"statistics", "system_shared_memory"} <= set(server.extensions)
    model = client.get_model_metadata("mixtral/0")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)] == [
        ("hidden_states", "FP32", [-1, 64]),
        ("output", "FP32", [-1, 64]),
    ]
    config = client.get_model_config("qwen3_moe/0").config
    assert config.max_batch_size == 8192 and list(config.input[0].dims) == [64] and config.HasField("dynamic_batching")
    assert {m.name for m in client.get_model_repository_index().models} == {"mixtral/0", "qwen3_moe/0", "deepseek_v3/1", "gpt_oss/0"}
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="NOT_FOUND.*'nobody' is not served"):
            ask("nobody/0")


@pytest.mark.parametrize("code", ["BF16", "FP32"])
def test_the_same_bits_as_by_our_own_protocol(kserve, client, golden, code):
    model, layer, bits, expected = golden
    rows = bits.view(ml_dtypes.bfloat16) if code == "BF16" else from_bf16(bits)
    answer = client.infer(f"{model}/{layer}", [tensor("hidden_states", rows)], request_id="some id")
    output = answer.as_numpy("output")
    assert output.dtype == rows.dtype and answer.get_response().id == "some id"
    with expertd.Client(kserve.endpoint) as ours:
        reference = ours.forward(model, layer, rows)
    np.testing.assert_array_equal(output.view(np.uint8), reference.output.view(np.uint8))
    assert answer.get_response().parameters["fingerprint"].string_param == reference.fingerprint
    if code == "FP32":
        assert_close(output, expected["output"])


def test_pre_routed(client, golden):
    model, layer, bits, expected = golden
    inputs = [tensor("hidden_states", from_bf16(bits)), tensor("topk_ids", expected["topk_ids"].astype(np.int32)),
              tensor("topk_weights", expected["topk_weights"].astype(np.float32))]  # fmt: skip
    output = client.infer(f"{model}/{layer}", inputs, parameters={"shared_expert": True}).as_numpy("output")
    assert_close(output, expected["output"])


def test_typed_contents(client):
    rows = rows_of()
    request = service_pb2.ModelInferRequest(model_name="mixtral/0")
    typed = request.inputs.add(name="hidden_states", datatype="FP32", shape=rows.shape)
    typed.contents.fp32_contents.extend(rows.reshape(-1))
    answer = triton.InferResult(client._client_stub.ModelInfer(request))
    np.testing.assert_array_equal(answer.as_numpy("output"), client.infer("mixtral/0", [tensor("hidden_states", rows)]).as_numpy("output"))


def test_zero_rows(client):
    assert client.infer("mixtral/0", [tensor("hidden_states", np.zeros((0, 64), np.float32))]).as_numpy("output").shape == (0, 64)


@pytest.mark.parametrize(
    "code, words, change",
    [
        ("NOT_FOUND", "'nobody' is not served", dict(model_name="nobody/0")),
        ("NOT_FOUND", "<model>/<layer index>", dict(model_name="mixtral")),
        ("NOT_FOUND", "version '3'", dict(model_version="3")),
        ("INVALID_ARGUMENT", "hidden_states: .* hidden=64", dict(inputs=[tensor("hidden_states", rows_of(2, 63))])),
        ("INVALID_ARGUMENT", "rows: 8193 is more than the 8192", dict(inputs=[tensor("hidden_states", np.zeros((8193, 64), np.float32))])),
        ("INVALID_ARGUMENT", r"topk_ids\[1,0\]=8 is not an expert", dict(inputs=[tensor("hidden_states", rows_of()),
         tensor("topk_ids", np.array([[7], [8]], np.int32)), tensor("topk_weights", np.ones((2, 1), np.float32))])),
        ("INVALID_ARGUMENT", "'unknown' is none of", dict(parameters={"unknown": 1})),
        ("INVALID_ARGUMENT", "'logits' is not 'output'", dict(outputs=[triton.InferRequestedOutput("logits")])),
        ("FAILED_PRECONDITION", "expected_fingerprint", dict(parameters={"expected_fingerprint": "other"})),
    ],
)  # fmt: skip
def test_errors_are_those_of_our_own_protocol(client, code, words, change):
    arguments = {"model_name": "mixtral/0", "inputs": [tensor("hidden_states", rows_of())], **change}
    with pytest.raises(InferenceServerException, match=words) as refused:
        client.infer(**arguments)
    assert refused.value.status() == f"StatusCode.{code}"
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(**arguments, request_id="bad")
    client.async_stream_infer("mixtral/0", [tensor("hidden_states", rows_of())], request_id="good")
    _, error = answers.get(timeout=10)
    assert error.message().startswith(f"{code}: ") and refused.value.message() in error.message()
    result, error = answers.get(timeout=10)
    assert error is None and result.get_response().id == "good"
    client.stop_stream()


def test_deadlines(slow_server):
    with triton.InferenceServerClient(slow_server.endpoint) as client:
        inputs = [tensor("hidden_states", rows_of())]
        with pytest.raises(InferenceServerException) as refused:
            client.infer("mixtral/0", inputs, timeout=1)  # microseconds; client_timeout is the call's deadline, and gRPC's business
        assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert client.infer("mixtral/0", inputs, timeout=10_000_000).as_numpy("output").shape == (2, 64)


def test_a_stream_answers_in_order(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    rows = rows_of(64)
    for count in range(1, 65):
        client.async_stream_infer("mixtral/0", [tensor("hidden_states", rows[:count])], request_id=str(count), enable_empty_final_response=True)
    alone = client.infer("mixtral/0", [tensor("hidden_states", rows)]).as_numpy("output")
    for count in range(1, 65):
        result, error = answers.get(timeout=30)
        assert error is None and result.get_response().id == str(count)
        assert result.get_response().parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("output"), alone[:count])
    client.stop_stream()


def test_async_infer_and_statistics(client):
    before = client.get_inference_statistics("gpt_oss/0").model_stats[0]
    answers = queue.Queue()
    for _ in range(8):
        client.async_infer("gpt_oss/0", [tensor("hidden_states", rows_of(4))], lambda result, error: answers.put((result, error)))
    assert all(answers.get(timeout=30)[1] is None for _ in range(8))
    after = client.get_inference_statistics("gpt_oss/0").model_stats[0]
    assert after.inference_count - before.inference_count == 32
    stats, earlier = after.inference_stats, before.inference_stats
    assert stats.success.count - earlier.success.count == 8
    parts = sum(getattr(stats, part).ns for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert abs(parts - stats.success.ns) <= 0.05 * stats.success.ns


class Region:
    """A shared memory object of ours, registered."""

    def __init__(self, client, name, size):
        self.client, self.name, self.size = client, name, size
        self.handle = shared_memory.create_shared_memory_region(name, f"/expertd-{name}", size, create_only=True)
        client.register_system_shared_memory(name, f"/expertd-{name}", size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.unregister_system_shared_memory(self.name)
        shared_memory.destroy_shared_memory_region(self.handle)


def test_shared_memory(client):
    rows = rows_of(4)
    expected = client.infer("mixtral/0", [tensor("hidden_states", rows)]).as_numpy("output")
    with Region(client, "rows", 4096) as given, Region(client, "answers", 4096) as taken:
        shared_memory.set_shared_memory_region(given.handle, [rows], offset=256)
        hidden = triton.InferInput("hidden_states", rows.shape, "FP32")
        hidden.set_shared_memory("rows", rows.nbytes, offset=256)
        output = triton.InferRequestedOutput("output")
        output.set_shared_memory("answers", rows.nbytes, offset=512)
        answer = client.infer("mixtral/0", [hidden], outputs=[output])
        assert answer.get_output("output").parameters["shared_memory_region"].string_param == "answers"
        np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(taken.handle, np.float32, rows.shape, offset=512), expected)

        status = client.get_system_shared_memory_status().regions
        assert {name: (region.key, region.byte_size) for name, region in status.items()} == {"rows": ("/expertd-rows", 4096), "answers": ("/expertd-answers", 4096)}
        hidden.set_shared_memory("rows", rows.nbytes, offset=4000)
        with pytest.raises(InferenceServerException, match="'rows' has 4096 bytes"):
            client.infer("mixtral/0", [hidden])
        hidden.set_shared_memory("rows", rows.nbytes, offset=256)
        with open(pathlib.Path("/dev/shm/expertd-rows"), "r+b") as object_:
            object_.truncate(300)
        with pytest.raises(InferenceServerException, match="'rows' was truncated: 44 of 1024 bytes"):
            client.infer("mixtral/0", [hidden])
    assert not client.get_system_shared_memory_status().regions
    with pytest.raises(InferenceServerException, match="'rows' is not registered"):
        client.infer("mixtral/0", [hidden])
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.get_system_shared_memory_status("rows")
    assert client.is_server_live()


def test_shared_memory_needs_its_flag(server):
    with triton.InferenceServerClient(server.endpoint) as client:
        with pytest.raises(InferenceServerException, match="--kserve-shared-memory"):
            client.register_system_shared_memory("rows", "/expertd-rows", 64)
        hidden = triton.InferInput("hidden_states", (1, 64), "FP32")
        hidden.set_shared_memory("rows", 256)
        with pytest.raises(InferenceServerException, match="--kserve-shared-memory"):
            client.infer("mixtral/0", [hidden])


def test_tokens_hold_here_too(tmp_path):
    (tmp_path / "tokens").write_text("plain:token-of-the-tests infer team-a\n")
    running = serve_golden(tmp_path, "mixtral", flags=("--tokens-file", tmp_path / "tokens"))
    try:
        with triton.InferenceServerClient(running.endpoint) as client:
            inputs = [tensor("hidden_states", rows_of())]
            for ask in (lambda: client.infer("mixtral/0", inputs), client.get_server_metadata, lambda: client.get_model_config("mixtral/0")):
                with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                    ask()
            allowed = {"authorization": "Bearer token-of-the-tests"}
            assert client.infer("mixtral/0", inputs, headers=allowed).as_numpy("output").shape == (2, 64)
    finally:
        assert running.stop() == 0
