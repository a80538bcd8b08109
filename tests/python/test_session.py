"""The fast lane from Python, where there is no GPU: what is refused and by which name, and the bytes of a request. With one:
tests/gpu/device_lane.py."""
import ctypes

import expertd
import numpy as np
import pytest
from conftest import serve_golden
from expertd.messages import Request
from expertd.v1 import expertd_pb2 as pb

REGION = expertd.DeviceRegion(handle=7, size=2 << 20, ipc_handle=bytes(64), device_uuid="GPU-00000000-0000-0000-0000-000000000000")


@pytest.fixture(scope="module")
def lane_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lane")
    running = serve_golden(folder, "mixtral", flags=("--fast-lane-socket", folder / "lane", "--fast-lane-device-mib", 4))
    yield running
    assert running.stop() == 0


def test_a_server_without_a_fast_lane_says_so(server):
    with expertd.Client(server.endpoint) as client, client.session() as session:
        with pytest.raises(expertd.Unimplemented, match="--fast-lane-socket"):
            session.create_device_region(1)
        with pytest.raises(expertd.Unimplemented):
            session.create_device_region(1)


def test_an_engine_without_device_memory_says_so_and_the_session_goes_on(lane_server):
    with expertd.Client(lane_server.endpoint) as client:
        assert "fast_lane" in client.server_info().features and "fast_lane_device" not in client.server_info().features
        with client.session() as session:
            for _ in range(2):
                with pytest.raises(expertd.Unimplemented, match="computes in host memory"):
                    session.create_device_region(1)
            session.close()
            with pytest.raises(expertd.Unavailable):
                session.create_device_region(1)


def test_rows_in_a_region_are_named_not_sent():
    rows = expertd.RegionRows(REGION, (2, 3, 64), dtype="f32", input_offset=64, output_offset=4096)
    ids, weights = np.zeros((6, 1), np.int32), np.ones((6, 1), np.float32)
    request = pb.ForwardRequest.FromString(Request("mixtral", 0, rows, topk_ids=ids, topk_weights=weights).to_bytes())
    assert request.WhichOneof("payload") == "region"
    assert (request.rows, request.dtype, request.routing.k) == (6, pb.DTYPE_F32, 1)
    assert request.region == pb.RegionRows(handle=7, input_offset=64, output_offset=4096)
    streamed = pb.StreamRequest.FromString(Request("mixtral", 0, rows).to_stream_bytes(9, None)).forward
    assert (streamed.request_id, streamed.region.handle) == (9, 7)
    for wrong in (expertd.RegionRows(REGION, (64,)), expertd.RegionRows(REGION, (1, 64), dtype="f8")):
        with pytest.raises(ValueError, match="expected"):
            Request("mixtral", 0, wrong)


def test_an_unknown_region_is_refused_by_name(lane_server):
    with expertd.Client(lane_server.endpoint) as client:
        with pytest.raises(expertd.NotFound, match="region.handle: 7"):
            client.forward("mixtral", 0, expertd.RegionRows(REGION, (1, client.layers()[0].hidden_size)))


def test_a_mapping_needs_that_gpu():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(RuntimeError, match="no NVIDIA driver"):
            REGION.map()
    else:
        with pytest.raises(RuntimeError):
            REGION.map()
