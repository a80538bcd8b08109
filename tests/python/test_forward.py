"""The client against a real server: golden outputs, every kind of array, every error type."""
import concurrent.futures
import time

import expertd
import numpy as np
import pytest
from conftest import assert_close
from expertd import from_bf16, to_bf16


PATIENT = expertd.Retry(attempts=1000, budget=1000)


@pytest.fixture
def client(server):
    with expertd.Client(server.endpoint) as client:
        yield client


def test_server_routed_rows_are_the_golden_ones(client, golden):
    model, layer, rows, expected = golden
    answer = client.forward(model, layer, rows, dtype="bf16", output_dtype="f32", return_routing=True)
    assert_close(answer.output, expected["output"])
    order = np.argsort(expected["topk_ids"], axis=1)  # torch.topk may return them unsorted
    ours = np.argsort(answer.routing.topk_ids, axis=1)
    np.testing.assert_array_equal(
        np.take_along_axis(answer.routing.topk_ids, ours, 1), np.take_along_axis(expected["topk_ids"], order, 1)
    )
    np.testing.assert_allclose(
        np.take_along_axis(answer.routing.topk_weights, ours, 1), np.take_along_axis(expected["topk_weights"], order, 1), rtol=1e-3, atol=1e-5
    )
    assert answer.batch_rows >= len(rows) and answer.stages.total > 0 and answer.fingerprint


def test_pre_routed_rows_are_the_golden_ones(client, golden):
    model, layer, rows, expected = golden
    answer = client.forward(
        model, layer, rows, dtype="bf16", output_dtype="f32", shared_expert=True, topk_ids=expected["topk_ids"], topk_weights=expected["topk_weights"]
    )
    assert_close(answer.output, expected["output"])


def test_kinds_of_arrays_agree_bit_for_bit(client, golden):
    model, layer, bits, _ = golden
    ask = lambda rows, **options: client.forward(model, layer, rows, **options).output  # noqa: E731
    exact = ask(bits, dtype="bf16", output_dtype="f32")
    assert exact.dtype == np.float32 and exact.flags.writeable
    assert_close(ask(from_bf16(bits)), exact)  # f32 rows are computed in f32
    np.testing.assert_array_equal(ask(from_bf16(bits), dtype="bf16"), from_bf16(to_bf16(exact)))
    rounded = ask(bits, dtype="bf16")
    assert rounded.dtype == np.uint16
    np.testing.assert_array_equal(rounded, to_bf16(exact))
    np.testing.assert_array_equal(ask(bits[None], dtype="bf16"), rounded[None])


def test_ml_dtypes(client, golden):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model, layer, bits, _ = golden
    answer = client.forward(model, layer, bits.view(ml_dtypes.bfloat16)).output
    assert answer.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(answer.view(np.uint16), client.forward(model, layer, bits, dtype="bf16").output)


def test_zero_rows(client):
    answer = client.forward("mixtral", 0, np.zeros((0, 64), np.float32))
    assert answer.output.shape == (0, 64)


def test_unary_and_stream_give_the_same_bits(client, golden):
    model, layer, rows, _ = golden
    alone = [client.forward(model, layer, rows[i : i + 1], dtype="bf16").output for i in range(len(rows))]
    with client.stream() as stream:
        together = [stream.forward(model, layer, rows[i : i + 1], dtype="bf16") for i in range(len(rows))]
    for one, pending in zip(alone, together):
        np.testing.assert_array_equal(one, pending.result(0).output)


def test_connections_and_threads(server, golden):
    model, layer, rows, _ = golden
    with expertd.Client(server.endpoint, connections=3) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.forward(model, layer, rows, dtype="bf16").output, range(40)))
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_layers_info_health(client):
    layers = {(layer.model, layer.layer): layer for layer in client.layers()}
    assert layers["mixtral", 0].hidden_size == 64 and layers["deepseek_v3", 1].experts_per_token == 8
    assert client.server_info().max_rows_per_request == 8192
    assert client.is_serving() and client.is_serving("mixtral/0") and not client.is_serving("nobody/7")


@pytest.mark.parametrize(
    "kind, words, call",
    [
        (expertd.NotFound, "nobody", dict(model="nobody", layer=3)),
        (expertd.InvalidArgument, "hidden_states", dict(rows=np.zeros((2, 63), np.float32))),
        (expertd.InvalidArgument, "8192", dict(rows=np.zeros((8193, 64), np.float32))),
        (expertd.FailedPrecondition, "fingerprint", dict(expected_fingerprint="other")),
        (expertd.InvalidArgument, "topk_ids", dict(topk_ids=[[0, 8], [0, 1]], topk_weights=np.ones((2, 2), np.float32))),
        (expertd.InvalidArgument, "priority", dict(priority=10)),
    ],
)
def test_errors_are_typed_and_say_what_is_wrong(client, kind, words, call):
    arguments = {"model": "mixtral", "layer": 0, "rows": np.zeros((2, 64), np.float32), **call}
    with pytest.raises(kind, match=words) as unary:
        client.forward(**arguments)
    with client.stream() as stream:
        pending = stream.forward(**arguments)
        fine = stream.forward("mixtral", 0, np.zeros((2, 64), np.float32))
    with pytest.raises(kind) as streamed:
        pending.result(0)
    assert str(streamed.value) == str(unary.value)
    assert fine.result(0).output.shape == (2, 64)  # the stream went on


@pytest.mark.parametrize(
    "words, call",
    [
        ("shape", dict(rows=np.zeros(64, np.float32))),
        ("float64", dict(rows=np.zeros((2, 64)))),
        ("uint16", dict(rows=np.zeros((2, 64), np.uint16))),
        ("dtype='f16'", dict(dtype="f16")),
        ("output_dtype='f16'", dict(output_dtype="f16")),
        ("come together", dict(topk_ids=[[0], [1]])),
        (r"expected \[2, k\]", dict(topk_ids=[[0]], topk_weights=np.ones((2, 1), np.float32))),
        ("k=2", dict(topk_ids=[[0], [1]], topk_weights=np.ones((2, 2), np.float32))),
        ("expected integers", dict(topk_ids=np.ones((2, 1)), topk_weights=np.ones((2, 1)))),
    ],
)
def test_arrays_that_no_server_takes_are_refused_here(client, words, call):
    with pytest.raises(ValueError, match=words):
        client.forward(**{"model": "mixtral", "layer": 0, "rows": np.zeros((2, 64), np.float32), **call})


def test_unreachable():
    with expertd.Client("127.0.0.1:1") as client, pytest.raises(expertd.Unavailable):
        client.forward("m", 0, np.zeros((1, 64), np.float32), timeout=5)


def test_deadlines(slow_server):
    rows = np.zeros((1, 64), np.float32)
    with expertd.Client(slow_server.endpoint) as client:
        with pytest.raises(expertd.DeadlineExceeded):
            client.forward("mixtral", 0, rows, timeout=0)
        with client.stream() as stream:
            late, fine = stream.forward("mixtral", 0, rows, timeout=1e-6), stream.forward("mixtral", 0, rows, timeout=10)
        with pytest.raises(expertd.DeadlineExceeded):
            late.result(0)
        assert fine.result(0).output.shape == (1, 64)


def test_cancelling_frees_the_slot_and_not_the_neighbour(slow_server):
    rows = np.zeros((1, 64), np.float32)
    with expertd.Client(slow_server.endpoint) as client, client.stream(max_in_flight=2) as stream:
        first, second = stream.forward("mixtral", 0, rows), stream.forward("mixtral", 0, rows)
        assert first.cancel() and first.cancelled()
        third = stream.forward("mixtral", 0, rows)  # waits for a slot
        assert second.result(5).output.shape == third.result(5).output.shape == (1, 64)


def test_overload_is_told_at_once_and_a_retry_waits_it_out(slow_server):
    rows = np.zeros((64, 64), np.float32)
    with expertd.Client(slow_server.endpoint) as plain, expertd.Client(slow_server.endpoint, retry=PATIENT) as retrying:
        with plain.stream() as stream:
            busy = stream.forward("mixtral", 0, rows)
            time.sleep(0.1)
            with pytest.raises(expertd.ResourceExhausted) as refused:
                plain.forward("mixtral", 0, rows, timeout=10)
            assert refused.value.retry_after is not None and refused.value.retry_after > 0
            assert retrying.forward("mixtral", 0, rows, timeout=10).output.shape == (64, 64)
            assert busy.result(5).output.shape == (64, 64)


def test_a_closed_stream_says_so(client):
    stream = client.stream()
    stream.close()
    stream.close()
    with pytest.raises(expertd.Cancelled, match="closed"):
        stream.forward("mixtral", 0, np.zeros((1, 64), np.float32))
