"""The PyTorch op chains that the CUDA operations replace, at the sizes of cuda_ops_bench, timed the same way: a CUDA graph
replayed 20 times, each after a 256 MiB memset that evicts the L2; the median. Positions and sort orders that an op works
out itself are worked out in the chain too.

usage: torch_chains.py [cuda_ops_bench.json]     with the file of a run on the same machine, ours stands beside it
"""
import json
import sys

import torch

DEVICE = "cuda"


def microseconds(chain, flush):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    times = []
    for _ in range(23):
        flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return sorted(times[3:])[10]


def softmax_topk(logits, k):
    weights, ids = torch.topk(torch.softmax(logits, -1), k)
    return weights / weights.sum(-1, keepdim=True), ids


def deepseek_v3_topk(logits, bias, k, groups=8, best=4):
    n, e = logits.shape
    scores = torch.sigmoid(logits)
    choice = (scores + bias).view(n, groups, e // groups)
    chosen_groups = choice.topk(2, -1).values.sum(-1).topk(best, -1).indices
    mask = torch.zeros(n, groups, device=DEVICE).scatter_(1, chosen_groups, 1).bool()
    ids = choice.masked_fill(~mask[:, :, None], float("-inf")).view(n, e).topk(k, -1).indices
    weights = scores.gather(1, ids)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, ids


def align(ids, e, block=64):
    order = torch.sort(ids.flatten(), stable=True).indices
    counts = torch.zeros(e, dtype=torch.int32, device=DEVICE)
    counts.scatter_add_(0, ids.flatten(), torch.ones_like(ids.flatten(), dtype=torch.int32))
    offsets = torch.cumsum((counts + block - 1) // block * block, 0)
    return order, counts, offsets


def batched_positions(ids, e, max_tokens):
    """Position of every slot in [E, max_tokens]: rank within its expert, by a stable sort."""
    flat = ids.flatten()
    order = torch.sort(flat, stable=True)
    counts = torch.zeros(e, dtype=torch.int64, device=DEVICE).scatter_add_(0, flat, torch.ones_like(flat))
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(flat.numel(), device=DEVICE) - first[order.values]
    position = torch.empty_like(flat)
    position[order.indices] = order.values * max_tokens + rank
    return position


def scatter(rows, ids, e, max_tokens):
    n, k = ids.shape
    batched = torch.zeros(e * max_tokens, rows.shape[1], dtype=rows.dtype, device=DEVICE)
    return batched.index_copy_(0, batched_positions(ids, e, max_tokens), rows.repeat_interleave(k, 0))


def weighted_scatter(grad, weights, positions, r):
    n, k = weights.shape
    out = torch.zeros(r, grad.shape[1], dtype=grad.dtype, device=DEVICE)
    return out.index_copy_(0, positions, (grad[:, None] * weights[:, :, None].to(grad.dtype)).flatten(0, 1))


def gather_reduce(expert_out, weights, positions):
    n, k = weights.shape
    return (expert_out[positions].view(n, k, -1) * weights[:, :, None]).sum(1).to(expert_out.dtype)


def routing_weight_grad(expert_out, grad, positions, k):
    return (expert_out[positions].view(grad.shape[0], k, -1).float() * grad[:, None].float()).sum(-1)


def pack(rows, ids, e, shards):
    k = ids.shape[1]
    order = torch.sort(ids.flatten() // -(-e // shards), stable=True).indices
    tail = torch.zeros(order.numel(), 8, dtype=rows.dtype, device=DEVICE)
    tail.view(torch.int32)[:, 0] = ids.flatten()[order].int()
    return torch.cat([rows[order // k], tail], 1)


def activation(x):
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def activation_backward(grad, x):
    gate, up = x.chunk(2, -1)
    silu = torch.nn.functional.silu(gate)
    return torch.cat([torch.ops.aten.silu_backward(grad * up, gate), grad * silu], -1)


def cells():
    """(op, shape, rows, chain), the names as in cuda_ops_bench."""
    for n, e in [(1, 256), (8, 256), (64, 256), (4096, 128), (16384, 128)]:
        logits = torch.randn(n, e, device=DEVICE)
        yield "fused_topk_routing", f"softmax {n} x {e} top 8", n, lambda x=logits: softmax_topk(x, 8)
    for n, e in [(1, 256), (64, 256), (4096, 256), (16384, 256), (4096, 128), (16384, 128)]:
        logits, bias = torch.randn(n, e, device=DEVICE), torch.randn(e, device=DEVICE)
        yield "fused_topk_routing", f"deepseek_v3 {n} x {e} top 8", n, lambda x=logits, b=bias: deepseek_v3_topk(x, b, 8)
    for n in [1, 128, 1024, 8192]:
        ids = torch.randn(n, 256, device=DEVICE).topk(8).indices
        yield "moe_align_block_size", f"{n} x 8 x 256", n, lambda i=ids: align(i, 256)
    for n, e, k, d, f in [(1, 128, 8, 2048, 768), (32, 128, 8, 2048, 768), (512, 128, 8, 2048, 768),
                          (8192, 128, 8, 2048, 768), (32, 256, 8, 7168, 2048), (8192, 256, 8, 7168, 2048)]:
        yield from row_cells(n, e, k, d, f)


def row_cells(n, e, k, d, f):
    shape = f"{e} x {k} x {d} x {f}"
    bf16 = dict(dtype=torch.bfloat16, device=DEVICE)
    ids = torch.randn(n, e, device=DEVICE).topk(k).indices
    max_tokens = int(torch.bincount(ids.flatten(), minlength=e).max())
    positions = batched_positions(ids, e, max_tokens)
    rows, expert_out = torch.randn(n, d, **bf16), torch.randn(e * max_tokens, d, **bf16)
    weights = torch.rand(n, k, device=DEVICE)
    both, hidden = torch.randn(n * k, 2 * f, **bf16), torch.randn(n * k, f, **bf16)
    yield "activation_forward", shape, n, lambda: activation(both)
    yield "activation_backward", shape, n, lambda: activation_backward(hidden, both)
    yield "fused_routing_scatter", shape, n, lambda: scatter(rows, ids, e, max_tokens)
    yield "fused_gather_reduce", shape, n, lambda: gather_reduce(expert_out, weights, positions)
    yield "fused_routing_weight_grad", shape, n, lambda: routing_weight_grad(expert_out, rows, positions, k)
    yield "fused_weighted_scatter", shape, n, lambda: weighted_scatter(rows, weights, positions, e * max_tokens)
    yield "fused_dispatch_pack", shape, n, lambda: pack(rows, ids, e, 8)


def main():
    ours = {}
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            ours = {(c["op"], c["shape"], c["rows"]): c["us"] for c in json.load(file)}
    torch.manual_seed(0)
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
    print(f"{'op':26} {'shape':30} {'N':>6} {'PyTorch us':>11} {'ours us':>9} {'ratio':>6}")
    for op, shape, n, chain in cells():
        theirs = microseconds(chain, flush)
        mine = ours.get((op, shape, n))
        beside = "" if mine is None else f" {mine:9.1f} {theirs / mine:6.1f}"
        print(f"{op:26} {shape:30} {n:6} {theirs:11.1f}{beside}", flush=True)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("torch_chains: PyTorch sees no CUDA device, nothing measured")
    else:
        main()
