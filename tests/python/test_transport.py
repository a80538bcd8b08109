"""TLS, mutual TLS, tokens, pushback and the retry budget, against a small gRPC server of our own that fails when told to."""
import concurrent.futures
import time

import expertd
import grpc
import numpy as np
import pytest
from expertd.v1 import expertd_pb2 as pb

pytest.importorskip("cryptography")
from certificates import certificate, pem  # noqa: E402

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


class Echo(grpc.GenericRpcHandler):
    """Answers Forward with its rows after `failures` (code, message, trailers) were given out."""

    def __init__(self):
        self.failures, self.calls, self.delay = [], [], 0

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.forward, pb.ForwardRequest.FromString, pb.ForwardResponse.SerializeToString)

    def forward(self, request, context):
        self.calls.append(dict(context.invocation_metadata()))
        time.sleep(self.delay)
        if self.failures:
            code, message, trailers = self.failures.pop(0)
            context.set_trailing_metadata(trailers)
            context.abort(code, message)
        return pb.ForwardResponse(result=pb.ForwardResult(rows=request.rows, dtype=request.dtype, output=request.hidden_states))


@pytest.fixture(scope="module")
def ca():
    return certificate("test-ca")


@pytest.fixture
def echo(ca):
    """(handler, plaintext endpoint, mutual TLS endpoint)"""
    handler = Echo()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    key, cert = pem(certificate("expertd.test", ca))
    credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=pem(ca)[1], require_client_auth=True)
    ports = server.add_insecure_port("127.0.0.1:0"), server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield (handler, *(f"127.0.0.1:{port}" for port in ports))
    server.stop(0).wait()


def test_mutual_tls_and_token(echo, ca, tmp_path):
    handler, _, endpoint = echo
    key, cert = pem(certificate("caller", ca))
    (tmp_path / "ca.pem").write_bytes(pem(ca)[1])
    tls = expertd.Tls(ca=tmp_path / "ca.pem", cert=cert, key=key, server_name="expertd.test")
    tokens = iter(["first", "second"])
    with expertd.Client(endpoint, tls=tls, token=lambda: next(tokens)) as client:
        for token in ("first", "second"):
            np.testing.assert_array_equal(client.forward("m", 0, ROWS, timeout=10).output, ROWS)
            assert handler.calls[-1]["authorization"] == f"Bearer {token}"


@pytest.mark.parametrize("fault", ["no certificate", "other ca", "other name"])
def test_tls_refuses(echo, ca, fault):
    key, cert = pem(certificate("caller", ca))
    options = dict(ca=pem(ca)[1], cert=cert, key=key, server_name="expertd.test")
    options.update({"no certificate": dict(cert=None, key=None), "other ca": dict(ca=pem(certificate("ca2"))[1]), "other name": dict(server_name="x.test")}[fault])
    with expertd.Client(echo[2], tls=expertd.Tls(**options)) as client, pytest.raises(expertd.Unavailable):
        client.forward("m", 0, ROWS, timeout=10)
    assert echo[0].calls == []


def test_secrets_stay_off_plaintext():
    with pytest.raises(ValueError, match="TLS or loopback"):
        expertd.Client("10.0.0.1:8470", token="secret")
    with pytest.raises(ValueError, match="cert and key"):
        expertd.Client("10.0.0.1:8470", tls=expertd.Tls(cert=b"x"))


UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "draining", ())
PUSHED_BACK = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", "20"),))


@pytest.mark.parametrize(
    "failures, retry, calls, error",
    [
        ([UNAVAILABLE], None, 1, expertd.Unavailable),  # nothing is retried unless told
        ([UNAVAILABLE, PUSHED_BACK], expertd.Retry(), 3, None),
        ([UNAVAILABLE] * 4, expertd.Retry(), 4, expertd.Unavailable),  # attempts
        ([UNAVAILABLE] * 4, expertd.Retry(budget=1), 2, expertd.Unavailable),  # budget
        ([(grpc.StatusCode.INVALID_ARGUMENT, "rows", ())], expertd.Retry(), 1, expertd.InvalidArgument),
        ([(grpc.StatusCode.UNAUTHENTICATED, "no token", ())], expertd.Retry(), 1, expertd.Unauthenticated),
    ],
)
def test_retries(echo, failures, retry, calls, error):
    handler, endpoint, _ = echo
    handler.failures = list(failures)
    with expertd.Client(endpoint, retry=retry) as client:
        if error is None:
            np.testing.assert_array_equal(client.forward("m", 0, ROWS, timeout=10).output, ROWS)
        else:
            with pytest.raises(error):
                client.forward("m", 0, ROWS, timeout=10)
    assert len(handler.calls) == calls


def test_pushback_beyond_the_deadline_is_not_waited_for(echo):
    handler, endpoint, _ = echo
    handler.failures = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", "60000"),))]
    with expertd.Client(endpoint, retry=expertd.Retry()) as client, pytest.raises(expertd.ResourceExhausted) as refused:
        client.forward("m", 0, ROWS, timeout=5)
    assert refused.value.retry_after == 60 and len(handler.calls) == 1


def test_the_budget_refills_with_successes(echo):
    handler, endpoint, _ = echo
    with expertd.Client(endpoint, retry=expertd.Retry(budget=1, refill=0.5, backoff=0)) as client:
        for failures, calls in (([UNAVAILABLE], 2), ([], 1), ([UNAVAILABLE], 2)):
            handler.failures, before = list(failures), len(handler.calls)
            client.forward("m", 0, ROWS, timeout=10)
            assert len(handler.calls) - before == calls


def test_the_deadline_is_the_whole_calls(echo):
    handler, endpoint, _ = echo
    handler.delay, handler.failures = 0.3, [UNAVAILABLE] * 3
    with expertd.Client(endpoint, retry=expertd.Retry(attempts=100, budget=100)) as client, pytest.raises(expertd.ExpertdError) as late:
        client.forward("m", 0, ROWS, timeout=0.5)
    assert isinstance(late.value, (expertd.DeadlineExceeded, expertd.Unavailable)) and len(handler.calls) == 2
    handler.failures = []
    with expertd.Client(endpoint) as client, pytest.raises(expertd.DeadlineExceeded):
        client.forward("m", 0, ROWS, timeout=0.1)
