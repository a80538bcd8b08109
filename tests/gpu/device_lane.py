"""The Python client's regions in device memory, with torch: the same bits as rows in the request.

usage: device_lane.py ENDPOINT MODEL     of a server with --fast-lane-socket and --fast-lane-device-mib; exit code 77: no torch or grpc
"""
import sys

try:
    import expertd
    import torch
except ImportError as error:
    print(f"not run: {error}")
    sys.exit(77)

endpoint, model = sys.argv[1:]
with expertd.Client(endpoint) as client:
    hidden = client.layers()[0].hidden_size
    with client.session() as session:
        with session.create_device_region(4 << 20).map() as memory:
            tensor = torch.as_tensor(memory, device=memory.device).view(torch.bfloat16)
            assert tensor.data_ptr() == memory.pointer, "torch has made a copy"
            assert not tensor.any()
            for rows in (1, 16, 200):
                given, taken = tensor[: rows * hidden], tensor[1 << 20 :][: rows * hidden]
                given.normal_()
                torch.cuda.synchronize()
                answer = client.forward(model, 0, expertd.RegionRows(memory.region, (rows, hidden), output_offset=2 << 20))
                assert answer.output is None
                sent = client.forward(model, 0, given.view(rows, hidden)).output
                assert torch.equal(taken.view(rows, hidden), sent), f"{rows} rows: other bits"
            del tensor, given, taken
        try:
            session.create_device_region(1 << 40)
            raise SystemExit("a region of 1 TiB was made")
        except expertd.ResourceExhausted as error:
            print(f"refused as it should be: {error}")
print("device_lane.py: the same bits")
