#!/usr/bin/env python3
"""How many devices a model's MoE layers need, from its shape and the wanted rate: CAPACITY.md's formulae with numbers put in.

  build/release/bin/expertd inspect DIR --json | deploy/capacity.py --inspect - --tokens-per-second 5000 --batch-rows 128 --device h100
  deploy/capacity.py --hidden 2048 --intermediate 768 --experts 128 --k 8 --layers 48 --tokens-per-second 5000 --batch-rows 128
"""
import argparse
import dataclasses
import json
import math
import sys

# memory GB, memory bandwidth GB/s, dense bf16 TFLOP/s: data sheets
DEVICES = {
    "a100": (80, 2039, 312),
    "h100": (80, 3350, 989),
    "h200": (141, 4800, 989),
    "l40s": (48, 864, 362),
}
HEADROOM = 0.7       # of the knee's throughput: beyond that the queue makes the latency
USABLE_MEMORY = 0.9  # the rest is workspace, graphs and the driver's
BITS = {"bf16": 16, "f16": 16, "f32": 32, "fp8": 8.002, "mxfp4": 4.25}  # with their scales


@dataclasses.dataclass
class Layer:
    hidden: int
    intermediate: int
    experts: int
    k: int
    shared: int
    bits: float

    def expert_bytes(self):
        return 3 * self.hidden * self.intermediate * self.bits / 8

    def dense_bytes(self):
        """The shared expert and the router: read for every batch."""
        return 3 * self.hidden * self.shared * self.bits / 8 + self.experts * self.hidden * 4

    def weight_bytes(self):
        return self.experts * self.expert_bytes() + self.dense_bytes()

    def flops_per_row(self):
        return 2 * 3 * self.hidden * (self.k * self.intermediate + self.shared)

    def experts_touched(self, rows):
        """Expected number, when every expert is as likely as any other; skew makes it smaller."""
        return self.experts * (1 - (1 - self.k / self.experts) ** rows)

    def bytes_read(self, rows):
        return self.experts_touched(rows) * self.expert_bytes() + self.dense_bytes()


def layers_of(args):
    if args.inspect:
        found = json.load(sys.stdin if args.inspect == "-" else open(args.inspect, encoding="utf-8"))
        return [Layer(l["hidden_size"], l["intermediate_size"], l["num_experts"], l["experts_per_token"],
                      l["shared_intermediate_size"], BITS[l["expert_format"]]) for l in found["layers"]]
    missing = [f"--{name}" for name in ("hidden", "intermediate", "experts", "k", "layers") if not getattr(args, name)]
    if missing:
        sys.exit(f"deploy/capacity.py: {', '.join(missing)}: wanted, or --inspect")
    if args.k > args.experts:
        sys.exit(f"deploy/capacity.py: --k {args.k} is more than --experts {args.experts}")
    return [Layer(args.hidden, args.intermediate, args.experts, args.k, args.shared_intermediate, BITS[args.format])] * args.layers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspect", metavar="FILE", help="the output of `expertd inspect DIR --json`; -: standard input")
    for name, text in (("hidden", "D"), ("intermediate", "F of one expert"), ("experts", "E of a layer"), ("k", "experts of a row"),
                       ("layers", "MoE layers")):
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument("--shared-intermediate", type=int, default=0, help="F of the shared expert (default 0: none)")
    parser.add_argument("--format", choices=BITS, default="bf16", help="of the weights (default %(default)s)")
    parser.add_argument("--tokens-per-second", type=float, required=True, help="of all callers together")
    parser.add_argument("--batch-rows", type=int, required=True, help="rows that are computed together")
    parser.add_argument("--device", default="h100", help="%s, or MEMORY_GB,GB_PER_S,TFLOPS (default %%(default)s)" % ", ".join(DEVICES))
    parser.add_argument("--efficiency", type=float, default=0.6, help="share of the device's peaks that is reached (default %(default)s)")
    parser.add_argument("--overhead-us", type=float, default=100, help="of a request besides its layer's compute (default %(default)s)")
    parser.add_argument("--row-bytes", type=int, default=2, help="bytes of an element on the wire (default 2: bf16)")
    args = parser.parse_args()

    layers = layers_of(args)
    memory_gb, bandwidth, tflops = DEVICES.get(args.device) or map(float, args.device.split(","))
    rows, total_bytes = args.batch_rows, sum(layer.weight_bytes() for layer in layers)
    by_memory = [layer.bytes_read(rows) / (args.efficiency * bandwidth * 1e9) for layer in layers]
    by_compute = [layer.flops_per_row() * rows / (args.efficiency * tflops * 1e12) for layer in layers]
    compute_s = sum(map(max, by_memory, by_compute))
    groups = math.ceil(total_bytes / (USABLE_MEMORY * memory_gb * 1e9))
    tokens_per_device = HEADROOM * rows / compute_s
    devices = groups * max(1, math.ceil(args.tokens_per_second / (tokens_per_device * groups)))
    wire = args.tokens_per_second * sum(layer.hidden for layer in layers) * args.row_bytes

    bound = "memory" if sum(by_memory) > sum(by_compute) else "compute"
    print(f"weights               {total_bytes / 1e9:10.1f} GB in {len(layers)} layers: {groups} x {memory_gb:g} GB hold them once")
    print(f"a batch of {rows:<6} rows  {layers[0].experts_touched(rows):8.1f} of {layers[0].experts} experts a layer, bound by {bound}")
    print(f"a layer's compute     {compute_s / len(layers) * 1e3:10.3f} ms")
    print(f"a token, all layers   {(compute_s + len(layers) * args.overhead_us * 1e-6) * 1e3:10.1f} ms, {args.overhead_us:g} us a layer of it on the way")
    print(f"a device, at {HEADROOM:.0%} load  {tokens_per_device:10.0f} tokens/s")
    print(f"devices               {devices:10d}")
    print(f"network, each way     {wire * 8 / 1e9:10.1f} Gbit/s for all, {wire * 8 / 1e9 / devices:.1f} a device")


if __name__ == "__main__":
    main()
