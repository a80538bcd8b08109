"""expertd_torch against plain torch, on the CPU and on a CUDA device where there is one.

usage: EXPERTD_LIBRARY=.../libexpertd_c.so.1 EXPERTD_GOLDEN=tests/data/golden python3 test_expertd_torch.py
Exit code 77 without torch: skipped.
"""
import gc
import os
import sys
import unittest

try:
    import torch
except ImportError:
    print("skipped: this python has no torch:", sys.executable)
    sys.exit(77)

import expertd_torch

GOLDEN = os.environ["EXPERTD_GOLDEN"]
DEVICES = ["cpu"] + ["cuda:0"] * torch.cuda.is_available()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


def plain_moe(rows, ids, weights, gate_up, down):
    out = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
    for n, (row_ids, row_weights) in enumerate(zip(ids.tolist(), weights.tolist())):
        for e, weight in zip(row_ids, row_weights):
            if e < 0:
                continue
            gate, up = (gate_up[e].double() @ rows[n].double()).chunk(2)
            hidden = (torch.nn.functional.silu(gate) * up).to(rows.dtype).double()
            out[n] += weight * (down[e].double() @ hidden)
    return out


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


class OperationsTest(unittest.TestCase):
    N, D, E, K, F = 33, 64, 6, 3, 48

    def cases(self):
        for device in DEVICES:
            for dtype in TOLERANCE:
                with self.subTest(device=device, dtype=dtype):
                    torch.manual_seed(1)
                    random = lambda *shape: torch.randn(*shape).to(device, dtype)
                    yield (device, dtype, random(self.N, self.D), random(self.E, 2 * self.F, self.D) / 8,
                           random(self.E, self.D, self.F) / 7)

    def test_routing_and_experts_say_what_torch_says(self):
        for device, dtype, rows, gate_up, down in self.cases():
            logits = torch.randn(self.N, self.E).to(device)
            weights, ids = torch.ops.expertd.fused_topk_routing(logits, self.K)
            want_weights, want_ids = logits.softmax(-1).topk(self.K)
            self.assertEqual(ids.tolist(), want_ids.tolist())
            self.assertLess(error(weights, (want_weights / want_weights.sum(-1, keepdim=True)).double()), 1e-5)
            ids[3, 1] = -1
            out = torch.ops.expertd.fused_moe_forward(rows, ids, weights, gate_up, down)
            self.assertEqual((out.dtype, out.device), (dtype, rows.device))
            self.assertLess(error(out, plain_moe(rows, ids, weights, gate_up, down)), TOLERANCE[dtype])

    def test_gradients_are_what_torch_computes(self):
        for device, dtype, rows, gate_up, down in self.cases():
            logits = torch.randn(self.N, self.E).to(device)
            weights, ids = torch.ops.expertd.fused_topk_routing(logits, self.K)
            grad_out = torch.randn(self.N, self.D).to(device, dtype)
            for recompute in (False, True):
                ours = [t.clone().requires_grad_() for t in (rows, weights, gate_up, down)]
                expertd_torch.moe(ours[0], ids, *ours[1:], recompute=recompute).backward(grad_out)
                plain = [t.double().requires_grad_() for t in (rows, weights, gate_up, down)]
                self.plain_forward(plain[0], ids, *plain[1:]).backward(grad_out.double())
                for name, a, b in zip(("rows", "weights", "gate_up", "down"), ours, plain):
                    self.assertEqual(a.grad.dtype, a.dtype)
                    self.assertLess(error(a.grad, b.grad), {torch.float32: 1e-5, torch.bfloat16: 1.2e-2}[dtype], name)

    def test_frozen_experts_get_no_gradient(self):
        for _, dtype, rows, gate_up, down in self.cases():
            weights, ids = torch.ops.expertd.fused_topk_routing(rows[:, : self.E].float(), self.K)
            rows.requires_grad_()
            expertd_torch.moe(rows, ids, weights, gate_up, down).sum().backward()
            self.assertGreater(rows.grad.abs().sum().item(), 0)
            self.assertIsNone(gate_up.grad)

    @staticmethod
    def plain_forward(rows, ids, weights, gate_up, down):
        gate, up = torch.einsum("nd,nkfd->nkf", rows, gate_up[ids.long()]).chunk(2, dim=-1)
        hidden = torch.nn.functional.silu(gate) * up
        return torch.einsum("nk,nkf,nkdf->nd", weights, hidden, down[ids.long()])

    def test_a_transposed_view_is_made_contiguous(self):
        for _, dtype, rows, gate_up, down in self.cases():
            weights, ids = torch.ops.expertd.fused_topk_routing(rows[:, : self.E].float(), self.K)
            view = down.transpose(1, 2).contiguous().transpose(1, 2)
            self.assertFalse(view.is_contiguous())
            self.assertTrue(torch.equal(torch.ops.expertd.fused_moe_forward(rows, ids, weights, gate_up, view),
                                        torch.ops.expertd.fused_moe_forward(rows, ids, weights, gate_up, down)))

    @unittest.skipIf(torch.__version__.startswith("1."), "torch 1 has no meta tensors for operators of others")
    def test_shapes_are_known_without_computing(self):
        meta = lambda *shape, dtype=torch.bfloat16: torch.empty(*shape, dtype=dtype, device="meta")
        weights, ids = torch.ops.expertd.fused_topk_routing(meta(5, 8, dtype=torch.float32), 2)
        out = torch.ops.expertd.fused_moe_forward(meta(5, 16), ids, weights, meta(8, 24, 16), meta(8, 16, 12))
        self.assertEqual((list(ids.shape), ids.dtype, list(out.shape), out.dtype), ([5, 2], torch.int32, [5, 16], torch.bfloat16))

    def test_mistakes_name_what_is_wrong(self):
        rows, ids, weights = torch.zeros(2, 8), torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
        gate_up, down = torch.zeros(3, 8, 8), torch.zeros(3, 8, 4)
        call = torch.ops.expertd.fused_moe_forward
        with self.assertRaisesRegex(ValueError, r"down: \[3, 8, 3\], must be \[3, 8, 4\]"):
            call(rows, ids, weights, gate_up, down[..., :3])
        with self.assertRaisesRegex(TypeError, "ids: torch.int64"):
            call(rows, ids.long(), weights, gate_up, down)
        with self.assertRaisesRegex(expertd_torch.ExpertdError, r"ids\[1\]: 3 is outside -1..2"):
            call(rows, torch.tensor([[0], [3]], dtype=torch.int32), weights, gate_up, down)
        with self.assertRaisesRegex(NotImplementedError, "forward only"):
            call(rows, ids, weights, gate_up.requires_grad_(), down)
        with torch.no_grad():
            call(rows, ids, weights, gate_up, down)

    @unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
    def test_a_graph_replays_with_other_rows(self):
        _, dtype, rows, gate_up, down = list(self.cases())[-1]
        weights, ids = torch.ops.expertd.fused_topk_routing(rows[:, : self.E].float(), self.K)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = torch.ops.expertd.fused_moe_forward(rows, ids, weights, gate_up, down)
        rows.copy_(torch.randn_like(rows))
        graph.replay()
        self.assertLess(error(out, plain_moe(rows, ids, weights, gate_up, down)), TOLERANCE[dtype])


class LayerTest(unittest.TestCase):
    CHECKPOINT = os.path.join(GOLDEN, "olmoe")

    def test_a_row_has_the_same_bits_alone_and_in_a_batch(self):
        for device in DEVICES:
            for dtype in TOLERANCE:
                with self.subTest(device=device, dtype=dtype):
                    layer = expertd_torch.Layer(self.CHECKPOINT, 0, device=device)
                    rows = torch.randn(2, 7, layer.hidden_size).to(device, dtype)
                    out = layer(rows)
                    self.assertEqual((out.shape, out.dtype, out.device), (rows.shape, dtype, rows.device))
                    self.assertTrue(torch.equal(layer(rows[1, 3]), out[1, 3]))
                    self.assertGreater(out.abs().sum().item(), 0)

    def test_mistakes_name_what_is_wrong(self):
        with self.assertRaisesRegex(expertd_torch.ExpertdError, "nowhere"):
            expertd_torch.Layer("/nowhere", 0)
        with self.assertRaisesRegex(expertd_torch.ExpertdError, "device: 'abacus'"):
            expertd_torch.Layer(self.CHECKPOINT, 0, device="abacus")
        with self.assertRaisesRegex(ValueError, r"rows: \[2, 5\], must be"):
            expertd_torch.Layer(self.CHECKPOINT, 0)(torch.zeros(2, 5))
        with self.assertRaisesRegex(NotImplementedError, "forward only"):
            expertd_torch.Layer(self.CHECKPOINT, 0)(torch.zeros(2, 64, requires_grad=True))
        gc.collect()  # half-made layers go without a crash


if __name__ == "__main__":
    print("torch", torch.__version__, "on", ", ".join(DEVICES))
    unittest.main()
