"""expertd's operations and layers on torch tensors, through the C ABI: an example to copy from.

    import expertd_torch
    weights, ids = torch.ops.expertd.fused_topk_routing(logits, 8)
    out = torch.ops.expertd.fused_moe_forward(rows, ids, weights, gate_up, down, "silu")
    out = expertd_torch.moe(rows, ids, weights, gate_up, down, "silu")            # the same, with gradients
    layer = expertd_torch.Layer("path/of/a/checkpoint", 0, device="cuda:0")       # a torch.nn.Module, weights in expertd
    out = layer(rows)

CUDA tensors run on their device and torch's current stream, without synchronising, so both operations can be captured in a
CUDA graph; CPU tensors run the double reference, which is slow. The operators and Layer are forward only, and refuse tensors that
want a gradient; moe() has gradients for rows, weights, gate_up and down.

The library is EXPERTD_LIBRARY, or else libexpertd_c.so.1 where the system's loader finds it.
"""
import ctypes
import os

import torch

_ABI_VERSION = 1
_lib = ctypes.CDLL(os.environ.get("EXPERTD_LIBRARY", "libexpertd_c.so.1"))
_lib.expertd_last_error.restype = ctypes.c_char_p
if _lib.expertd_abi_version() != _ABI_VERSION:
    raise ImportError(f"libexpertd_c has ABI {_lib.expertd_abi_version()}, this module is for {_ABI_VERSION}")

_DTYPES = {torch.bfloat16: 0, torch.float32: 1}
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4, "swiglu_oai": 5}
_SCORES = {"softmax": 0, "sigmoid": 1}
_RENORMALISE_SUM = 1
_HOST = -1


class ExpertdError(RuntimeError):
    """A failed call; `code` is a gRPC status code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def _check(status):
    if status != 0:
        raise ExpertdError(status, _lib.expertd_last_error().decode())


def _struct(name, *fields):
    """A ctypes.Structure; fields are "name:type" with i i32, l i64, f float, p pointer, s string, or a struct of below."""
    types = {"i": ctypes.c_int32, "l": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p, "s": ctypes.c_char_p,
             "rule": globals().get("_RoutingRule"), "moe": globals().get("_MoeArgs")}
    pairs = [field.split(":") for field in fields]
    return type(name, (ctypes.Structure,), {"_fields_": [(field, types[kind]) for field, kind in pairs]})


# expertd.h and expertd_ops.h, field for field.
_Launch = _struct("_Launch", "device:i", "stream:p", "workspace:p", "workspace_bytes:l")
_RoutingRule = _struct("_RoutingRule", "score:i", "group_score:i", "n_group:l", "topk_group:l", "weigh:i", "renormalise:i",
                       "renormalise_eps:f", "scale:f", "jitter_eps:f")
_TopkArgs = _struct("_TopkArgs", "n:l", "e:l", "k:l", "rule:rule", "logits:p", "correction_bias:p", "weights:p", "ids:p")
_MoeArgs = _struct("_MoeArgs", "n:l", "d:l", "e:l", "k:l", "f:l", "activation:i", "limit:f", "alpha:f", "weight_on_input:i",
                   "dtype:i", "out_dtype:i", "rows:p", "ids:p", "weights:p", "gate_up:p", "down:p", "out:p")
_MoeForwardArgs = _struct("_MoeForwardArgs", "forward:moe", "recompute:i", "saved:p", "saved_bytes:l")
_MoeBackwardArgs = _struct("_MoeBackwardArgs", "forward:moe", "recompute:i", "w_dtype:i", "saved:p", "saved_bytes:l", "grad_out:p",
                           "grad_rows:p", "grad_weights:p", "grad_gate_up:p", "grad_down:p")
_Segment = _struct("_Segment", "rows:l", "input:p", "output:p", "input_dtype:i", "output_dtype:i", "no_shared:i", "k:l",
                   "topk_ids:p", "topk_weights:p", "routed_ids:p", "routed_weights:p")
_LayerInfo = _struct("_LayerInfo", "name:s", "fingerprint:s", "path:s", "hidden_size:l", "num_experts:l", "experts_per_token:l",
                     "intermediate_size:l", "shared_intermediate_size:l", "weight_bytes:l")


def _require(tensor, name, shape, dtypes, device):
    """The tensor, contiguous; what its pointer could not say is checked here."""
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name}: {list(tensor.shape)}, must be {list(shape)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: {tensor.dtype}, must be one of {', '.join(map(str, dtypes))}")
    if tensor.device != device:
        raise ValueError(f"{name}: on {tensor.device}, must be on {device}")
    return tensor.contiguous()


def _launch(device, workspace=None):
    if device.type == "cpu":
        return _Launch(device=_HOST)
    launch = _Launch(device=device.index, stream=torch.cuda.current_stream(device).cuda_stream)
    if workspace is not None:
        launch.workspace, launch.workspace_bytes = workspace.data_ptr(), workspace.numel()
    return launch


def _fused_topk_routing(logits, k, score="softmax", renormalise=True):
    n, e = logits.shape
    logits = _require(logits, "logits", [n, e], [torch.float32], logits.device)
    weights = torch.empty(n, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(n, k, dtype=torch.int32, device=logits.device)
    rule = _RoutingRule(score=_SCORES[score], renormalise=_RENORMALISE_SUM if renormalise else 0)
    args = _TopkArgs(n=n, e=e, k=k, rule=rule, logits=logits.data_ptr(), weights=weights.data_ptr(), ids=ids.data_ptr())
    _check(_lib.expertd_fused_topk_routing(ctypes.byref(args), ctypes.byref(_launch(logits.device))))
    return weights, ids


def _moe_args(rows, ids, weights, gate_up, down, activation, out):
    """The arguments, and the tensors that they point into."""
    device, (n, d), k, (e, f2, _) = rows.device, rows.shape, ids.shape[1], gate_up.shape
    tensors = (_require(rows, "rows", [n, d], _DTYPES, device), _require(ids, "ids", [n, k], [torch.int32], device),
               _require(weights, "weights", [n, k], [torch.float32], device),
               _require(gate_up, "gate_up", [e, f2, d], [rows.dtype], device),
               _require(down, "down", [e, d, f2 // 2], [rows.dtype], device))
    pointers = dict(zip(("rows", "ids", "weights", "gate_up", "down"), (tensor.data_ptr() for tensor in tensors)))
    return _MoeArgs(n=n, d=d, e=e, k=k, f=f2 // 2, activation=_ACTIVATIONS[activation], dtype=_DTYPES[rows.dtype],
                    out_dtype=_DTYPES[rows.dtype], out=out.data_ptr(), **pointers), tensors


def _device_bytes(device, query, args, *more):
    """Uninitialised device memory of the sizes that a query answers; from torch's allocator, which knows the stream."""
    sizes = [ctypes.c_int64() for _ in range(2 if query is _lib.expertd_moe_forward_sizes else 1)]
    _check(query(ctypes.byref(args), *more, *(ctypes.byref(size) for size in sizes)))
    return [torch.empty(size.value, dtype=torch.uint8, device=device) for size in sizes]


def _fused_moe_forward(rows, ids, weights, gate_up, down, activation="silu"):
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    args, tensors = _moe_args(rows, ids, weights, gate_up, down, activation, out)
    workspace = None
    if rows.device.type == "cuda":
        workspace, = _device_bytes(rows.device, _lib.expertd_fused_moe_forward_workspace, args)
    _check(_lib.expertd_fused_moe_forward(ctypes.byref(args), ctypes.byref(_launch(rows.device, workspace))))
    del tensors  # alive until here: the arguments point into them
    return out


class _Moe(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, ids, weights, gate_up, down, activation, recompute):
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        forward, tensors = _moe_args(rows, ids, weights, gate_up, down, activation, out)
        args, saved, workspace = _MoeForwardArgs(forward=forward, recompute=recompute), None, None
        if rows.device.type == "cuda":
            saved, workspace = _device_bytes(rows.device, _lib.expertd_moe_forward_sizes, args)
            args.saved, args.saved_bytes = saved.data_ptr(), saved.numel()
        _check(_lib.expertd_moe_forward(ctypes.byref(args), ctypes.byref(_launch(rows.device, workspace))))
        ctx.save_for_backward(*tensors, *([] if saved is None else [saved]))
        ctx.activation, ctx.recompute = activation, recompute
        return out

    @staticmethod
    def backward(ctx, grad_out):
        rows, ids, weights, gate_up, down, *saved = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grads = [torch.empty_like(tensor) for tensor in (rows, weights, gate_up, down)]
        wanted = [ctx.needs_input_grad[3], ctx.needs_input_grad[4]]
        forward, _ = _moe_args(rows, ids, weights, gate_up, down, ctx.activation, grads[0])
        args = _MoeBackwardArgs(forward=forward, recompute=ctx.recompute, w_dtype=_DTYPES[rows.dtype], grad_out=grad_out.data_ptr(),
                                grad_rows=grads[0].data_ptr(), grad_weights=grads[1].data_ptr(),
                                grad_gate_up=grads[2].data_ptr() if wanted[0] else None,
                                grad_down=grads[3].data_ptr() if wanted[1] else None)
        workspace = None
        if saved:
            args.saved, args.saved_bytes = saved[0].data_ptr(), saved[0].numel()
            workspace, = _device_bytes(rows.device, _lib.expertd_moe_backward_workspace, args, ctypes.c_int32(rows.device.index))
        _check(_lib.expertd_moe_backward(ctypes.byref(args), ctypes.byref(_launch(rows.device, workspace))))
        return grads[0], None, grads[1], grads[2] if wanted[0] else None, grads[3] if wanted[1] else None, None, None


def moe(rows, ids, weights, gate_up, down, activation="silu", recompute=False):
    """fused_moe_forward with gradients. `recompute` saves memory: the activation and the second product are computed again."""
    return _Moe.apply(rows, ids, weights, gate_up, down, activation, int(recompute))


def _refuse_gradients(tensors):
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors):
        raise NotImplementedError("a tensor wants a gradient, and expertd's operations here are forward only")


def _register(library, schema, kernel, shapes):
    """An operator on CPU and CUDA tensors; `shapes` answers empty outputs, for torch.compile and meta tensors."""
    name = schema.split("(")[0]

    def forward_only(*args):
        _refuse_gradients(args)
        return kernel(*args)

    library.define(schema)
    for key, implementation in (("CPU", forward_only), ("CUDA", forward_only), ("Meta", shapes)):
        library.impl(name, implementation, key)


_library = torch.library.Library("expertd", "DEF")  # in every torch from 1.13 on
_register(_library, 'fused_topk_routing(Tensor logits, int k, str score="softmax", bool renormalise=True) -> (Tensor, Tensor)',
          _fused_topk_routing,
          lambda logits, k, *_: (logits.new_empty(logits.shape[0], k), logits.new_empty(logits.shape[0], k, dtype=torch.int32)))
_register(_library, 'fused_moe_forward(Tensor rows, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, str activation="silu") '
          '-> Tensor', _fused_moe_forward, lambda rows, *_: torch.empty_like(rows))


class Layer(torch.nn.Module):
    """One MoE layer of a checkpoint on disk, resident in an engine of expertd: rows in, rows out, routed by its own router.

    Rows may be on any device; the engine takes them from host memory, so those on another device are copied. `path` and
    `fingerprint` are the engine's.
    """

    def __init__(self, checkpoint, index, device="cpu"):
        super().__init__()
        self._engine, self._layer = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_lib.expertd_engine_create(device.encode(), None, ctypes.byref(self._engine)))
        _check(_lib.expertd_layer_load(self._engine, os.fspath(checkpoint).encode(), ctypes.c_int64(index),
                                       ctypes.byref(self._layer)))
        info = _LayerInfo()
        _check(_lib.expertd_layer_describe(self._layer, ctypes.byref(info)))
        self.hidden_size = info.hidden_size
        self.path, self.fingerprint = info.path.decode(), info.fingerprint.decode()

    def __del__(self):
        _lib.expertd_layer_unload(self._layer)
        _lib.expertd_engine_destroy(self._engine)

    def forward(self, rows):
        _refuse_gradients([rows])
        flat = rows.reshape(-1, rows.shape[-1])
        flat = _require(flat, "rows", [flat.shape[0], self.hidden_size], _DTYPES, rows.device).cpu()
        out = torch.empty_like(flat)
        dtype = _DTYPES[flat.dtype]
        segment = _Segment(rows=flat.shape[0], input=flat.data_ptr(), output=out.data_ptr(), input_dtype=dtype, output_dtype=dtype)
        _check(_lib.expertd_run(self._layer, ctypes.byref(segment), ctypes.c_size_t(1), None))
        return out.reshape(rows.shape).to(rows.device)
