"""A remote MoE layer as a torch module, for models that transformers does not run."""
from __future__ import annotations

from typing import Optional

import torch

from .client import Client


def refuse_gradients(rows: torch.Tensor) -> None:
    if torch.is_grad_enabled() and rows.requires_grad:
        raise RuntimeError("expertd runs forward only: its output has no gradient. Wrap the call in torch.no_grad() or detach the rows.")


class RemoteMoE(torch.nn.Module):
    """Rows [..., hidden] -> [..., hidden] through layer `layer` of the server's `model`, on the rows' own device and dtype
    (float32 or bfloat16).

    Without ids and weights the server routes and adds the shared expert; with them (`[..., k]`) it applies them as given and
    leaves the shared expert out, unless `shared_expert` says otherwise. `timeout` (seconds) holds for each call.
    """

    def __init__(
        self, client: Client, model: str, layer: int, *, timeout: Optional[float] = None, shared_expert: Optional[bool] = None,
        expected_fingerprint: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.client, self.model, self.layer, self.timeout = client, model, layer, timeout
        self.options = {"shared_expert": shared_expert, "expected_fingerprint": expected_fingerprint}

    def forward(
        self, hidden_states: torch.Tensor, topk_ids: Optional[torch.Tensor] = None, topk_weights: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        refuse_gradients(hidden_states)
        answer = self.client.forward(
            self.model, self.layer, hidden_states, topk_ids=topk_ids, topk_weights=topk_weights, timeout=self.timeout, **self.options
        )
        output: torch.Tensor = answer.output
        return output

    def extra_repr(self) -> str:
        return f"{self.model}/{self.layer}"
