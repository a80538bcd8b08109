"""The asyncio client: the same answers, many at once, cancellation of one task."""
import asyncio

import expertd
import expertd.aio
import numpy as np
import pytest
from conftest import assert_close


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_forward_and_queries(server, golden):
    model, layer, rows, expected = golden

    async def body():
        async with expertd.aio.Client(server.endpoint, connections=2) as client:
            answers = await asyncio.gather(*(client.forward(model, layer, rows, dtype="bf16", output_dtype="f32") for _ in range(20)))
            assert await client.is_serving() and not await client.is_serving("nobody/1")
            assert len(await client.layers()) >= 4
            return answers

    for answer in run(body()):
        assert_close(answer.output, expected["output"])


def test_stream(server, golden):
    model, layer, rows, _ = golden

    async def body():
        async with expertd.aio.Client(server.endpoint) as client, await client.stream() as stream:
            good = (stream.forward(model, layer, rows[i : i + 1], dtype="bf16") for i in range(19))
            *answers, bad = await asyncio.gather(*good, stream.forward("nobody", 0, rows, dtype="bf16"), return_exceptions=True)
            alone = [await client.forward(model, layer, rows[i : i + 1], dtype="bf16") for i in range(19)]
            return answers, alone, bad

    answers, alone, bad = run(body())
    assert isinstance(bad, expertd.NotFound)
    for one, other in zip(answers, alone):
        np.testing.assert_array_equal(one.output, other.output)


def test_a_cancelled_task_leaves_the_stream_working(slow_server):
    rows = np.zeros((1, 64), np.float32)

    async def body():
        async with expertd.aio.Client(slow_server.endpoint) as client, await client.stream() as stream:
            task = asyncio.ensure_future(stream.forward("mixtral", 0, rows))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await stream.forward("mixtral", 0, rows)

    assert run(body()).output.shape == (1, 64)


def test_retry_and_errors(slow_server):
    rows = np.zeros((64, 64), np.float32)

    async def body():
        retry = expertd.Retry(attempts=1000, budget=1000)
        async with expertd.aio.Client(slow_server.endpoint) as plain, expertd.aio.Client(slow_server.endpoint, retry=retry) as retrying:
            busy = asyncio.ensure_future(plain.forward("mixtral", 0, rows))
            await asyncio.sleep(0.1)
            with pytest.raises(expertd.ResourceExhausted):
                await plain.forward("mixtral", 0, rows, timeout=10)
            return await asyncio.gather(busy, retrying.forward("mixtral", 0, rows, timeout=10))

    assert [answer.output.shape for answer in run(body())] == [(64, 64), (64, 64)]


def test_the_end_of_the_server_reaches_whoever_waits(tmp_path):
    from conftest import serve_golden

    server = serve_golden(tmp_path, "mixtral", flags=("--batch-window-us", 500000))

    async def body():
        async with expertd.aio.Client(server.endpoint) as client:
            stream = await client.stream()
            waiting = asyncio.ensure_future(stream.forward("mixtral", 0, np.zeros((1, 64), np.float32)))
            await asyncio.sleep(0.1)
            server.process.kill()
            with pytest.raises(expertd.Unavailable):
                await waiting
            with pytest.raises(expertd.ExpertdError):
                await stream.forward("mixtral", 0, np.zeros((1, 64), np.float32))
            await stream.close()

    run(body())
