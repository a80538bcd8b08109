"""Any MoE model of transformers 5 with its experts on an expertd server. Routers, shared experts and attention stay local.

    import expertd, expertd.transformers
    model = expertd.transformers.from_pretrained("Qwen/Qwen3-30B-A3B", expertd.Client("experts:8470"), name="qwen3-30b")
    model.generate(...)
"""
from __future__ import annotations

import re
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
import transformers
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .client import Client
from .nn import RemoteMoE, refuse_gradients

IMPLEMENTATION = "expertd"
_REMOTE = "_expertd_remote"  # of an experts module: its RemoteMoE. In __dict__, so that it is no submodule and no state


def register() -> None:
    """Makes `experts_implementation="expertd"` known to transformers. Idempotent; connect() says which server."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)


def _experts_forward(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    remote = self.__dict__.get(_REMOTE)
    if remote is None:
        raise RuntimeError("experts_implementation='expertd', but no server is known: call expertd.transformers.connect(model, client, name)")
    refuse_gradients(hidden_states)
    with torch.no_grad():
        output: torch.Tensor = remote(hidden_states, top_k_index, top_k_weights)
    return output


def experts_of(model: torch.nn.Module) -> Iterator[Tuple[int, Any]]:
    """(layer index, experts module) of every MoE block: modules that transformers dispatches through ALL_EXPERTS_FUNCTIONS."""
    for name, module in model.named_modules():
        numbers = re.findall(r"\.(\d+)(?=\.)", name)
        if numbers and hasattr(module, "_is_expert_parallel") and hasattr(module, "_apply_gate"):
            yield int(numbers[-1]), module


def connect(model: Any, client: Client, name: str, *, timeout: Optional[float] = None) -> Any:
    """Runs the experts of `model` on the server's layers `name`/<layer index>, from now on; returns `model`.

    LookupError when the server lacks one of the layers, ValueError when sizes differ; each layer's fingerprint is held from now on, so a
    server that comes back with other weights fails (FailedPrecondition) instead of changing the model's words.
    """
    register()
    served = {layer.layer: layer for layer in client.layers() if layer.model == name}
    found = list(experts_of(model))
    if not found:
        raise ValueError(f"{type(model).__name__}: no experts that transformers can dispatch")
    for layer, experts in found:
        if layer not in served:
            raise LookupError(f"{name}/{layer} is not served (there are layers {sorted(served)})")
        hidden = experts.config.get_text_config().hidden_size
        if served[layer].hidden_size != hidden:
            raise ValueError(f"{name}/{layer}: hidden size {served[layer].hidden_size}, the model has {hidden}")
        remote = RemoteMoE(client, name, layer, timeout=timeout, shared_expert=False, expected_fingerprint=served[layer].fingerprint)
        experts.__dict__[_REMOTE] = remote
    model.set_experts_implementation(IMPLEMENTATION)
    return model


def from_pretrained(path: str, client: Client, name: str, *, auto_class: Any = None, timeout: Optional[float] = None, **options: Any) -> Any:
    """`auto_class.from_pretrained(path, **options)` (default AutoModelForCausalLM) without reading or keeping the experts' weights,
    connected to `name` on the server. The experts' parameters are on the meta device and stay there when the model moves."""
    register()
    auto_class = auto_class or transformers.AutoModelForCausalLM
    config = options.pop("config", None) or transformers.AutoConfig.from_pretrained(path)
    model_class = auto_class._model_mapping[type(config)]
    model = _without_experts(model_class).from_pretrained(path, config=config, experts_implementation=IMPLEMENTATION, **options)
    for _, experts in experts_of(model):
        for parameter_name, parameter in experts.__dict__.pop("_expertd_parameters").items():
            setattr(experts, parameter_name, parameter)
        experts._apply = lambda fn, recurse=True, experts=experts: experts  # meta tensors cannot be moved, and need not be
    model.__class__ = model_class
    return connect(model, client, name, timeout=timeout)


def _without_experts(model_class: Any) -> Any:
    """The class with experts that have no parameters, so that the loader finds theirs in the files unexpected and skips them."""

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        for _, experts in experts_of(self):
            stripped: Dict[str, torch.nn.Parameter] = {}
            for parameter_name, parameter in list(experts.named_parameters(recurse=False)):
                stripped[parameter_name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
                delattr(experts, parameter_name)
            experts.__dict__["_expertd_parameters"] = stripped
            experts._is_hf_initialized = True  # there is nothing to initialise

    unexpected = [*(getattr(model_class, "_keys_to_ignore_on_load_unexpected", None) or []), r"\.experts\."]
    return type(model_class.__name__, (model_class,), {"__init__": init, "_keys_to_ignore_on_load_unexpected": unexpected, "__module__": model_class.__module__})
