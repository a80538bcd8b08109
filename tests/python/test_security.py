"""TLS, client certificates and tokens of the real server, as the package sees them."""
import hashlib

import expertd
import expertd.aio
import numpy as np
import pytest
from conftest import serve_golden

pytest.importorskip("cryptography")
from certificates import certificate, pem  # noqa: E402

ROWS = np.ones((2, 64), np.float32)
TOKEN, OTHER_TOKEN = "token-of-the-tests", "admin-of-the-tests"


@pytest.fixture(scope="module")
def ca():
    return certificate("test-ca")


@pytest.fixture(scope="module")
def secured(ca, tmp_path_factory):
    """A server with TLS, client certificates and tokens; and the folder with its files."""
    folder = tmp_path_factory.mktemp("secured")
    key, cert = pem(certificate("expertd.test", ca))
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    files = {"ca.pem": pem(ca)[1], "cert.pem": cert, "key.pem": key,
             "tokens": f"sha256:{digest} infer team-a\nplain:{OTHER_TOKEN} admin team-b\n".encode()}  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    flags = ("--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem", "--tls-client-ca", folder / "ca.pem",
             "--tokens-file", folder / "tokens")  # fmt: skip
    running = serve_golden(folder, "mixtral", flags=flags)
    yield running
    assert running.stop() == 0


@pytest.fixture
def tls(ca):
    key, cert = pem(certificate("caller", ca))
    return expertd.Tls(ca=pem(ca)[1], cert=cert, key=key)


def test_tls_and_token(secured, tls):
    tokens = iter([TOKEN, TOKEN, "no-token-of-the-server", TOKEN, TOKEN])  # the last two: limits, stream
    with expertd.Client(secured.endpoint, tls=tls, token=lambda: next(tokens)) as client:
        first = client.forward("mixtral", 0, ROWS, timeout=10).output
        np.testing.assert_array_equal(client.forward("mixtral", 0, ROWS, timeout=10).output, first)
        with pytest.raises(expertd.Unauthenticated):
            client.forward("mixtral", 0, ROWS, timeout=10)
        with client.stream() as stream:
            np.testing.assert_array_equal(stream.forward("mixtral", 0, ROWS, timeout=10).result(10).output, first)


def test_asyncio(secured, tls):
    import asyncio

    async def body():
        async with expertd.aio.Client(secured.endpoint, tls=tls, token=TOKEN) as client:
            return (await client.forward("mixtral", 0, ROWS, timeout=10)).output

    assert asyncio.run(body()).shape == ROWS.shape


@pytest.mark.parametrize("kind, token", [(expertd.Unauthenticated, None), (expertd.Unauthenticated, "guessed-token-value"), (expertd.PermissionDenied, OTHER_TOKEN)])
def test_who_may_not_is_told(secured, tls, kind, token):
    with expertd.Client(secured.endpoint, tls=tls, token=token) as client:
        with pytest.raises(kind) as refused:
            client.forward("mixtral", 0, ROWS, timeout=10)
        assert token is None or token not in str(refused.value)
        with pytest.raises(kind), client.stream() as stream:
            stream.forward("mixtral", 0, ROWS, timeout=10).result(10)


def test_without_the_right_certificates_there_is_no_connection(secured, ca, tls):
    key, cert = pem(certificate("stranger", certificate("another-ca")))
    wrong = [None, expertd.Tls(ca=pem(ca)[1]), expertd.Tls(ca=pem(ca)[1], cert=cert, key=key),
             expertd.Tls(ca=pem(certificate("another-ca"))[1], cert=tls.cert, key=tls.key)]  # fmt: skip
    for settings in wrong:
        with expertd.Client(secured.endpoint, tls=settings, token=TOKEN) as client, pytest.raises(expertd.Unavailable):
            client.forward("mixtral", 0, ROWS, timeout=3)
