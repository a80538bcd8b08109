"""Channels: credentials and gRPC settings, the same for the blocking and the asyncio client."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, Union

import grpc

Pem = Union[bytes, str, Path]
Token = Union[str, Callable[[], str]]
Metadata = Tuple[Tuple[str, str], ...]


def _pem(value: Optional[Pem]) -> Optional[bytes]:
    """Bytes are a certificate or key itself, anything else is the path of a file that holds it."""
    return value if value is None or isinstance(value, bytes) else Path(value).read_bytes()


@dataclass(frozen=True)
class Tls:
    """TLS to the server. `ca` verifies it (default: the system's), `cert` and `key` identify us (mutual TLS); PEM bytes or paths.
    `server_name` is expected in its certificate instead of the endpoint's host."""

    ca: Optional[Pem] = None
    cert: Optional[Pem] = None
    key: Optional[Pem] = None
    server_name: Optional[str] = None

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.cert is None) != (self.key is None):
            raise ValueError("Tls: cert and key come together")
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


def _is_local(endpoint: str) -> bool:
    host = endpoint.split(":///")[-1] if ":///" in endpoint else endpoint
    return endpoint.startswith("unix:") or host.startswith(("127.", "localhost:", "[::1]:"))


def _options(tls: Optional[Tls], index: int) -> List[Tuple[str, Any]]:
    options: List[Tuple[str, Any]] = [
        # An answer is as large as our own request made it; the server's limit refuses what is too large, with a reason.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_retries", 0),  # ours know pushback and budget also for large requests, which gRPC does not retry
        ("grpc.use_local_subchannel_pool", 1),  # every channel a connection of its own
        ("expertd.connection", index),
        ("grpc.lb_policy_name", "round_robin"),  # dns:///name: all replicas
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def open_channels(grpc_module: Any, endpoint: str, connections: int, tls: Optional[Tls], token: Optional[Token]) -> List[Any]:
    """`grpc_module`: grpc or grpc.aio."""
    if connections < 1:
        raise ValueError(f"connections={connections}: at least 1")
    if token is not None and tls is None and not _is_local(endpoint):
        raise ValueError(f"endpoint {endpoint}: a token goes over TLS or loopback only; pass tls=")
    if tls is None:
        return [grpc_module.insecure_channel(endpoint, options=_options(None, i)) for i in range(connections)]
    return [grpc_module.secure_channel(endpoint, tls.credentials(), options=_options(tls, i)) for i in range(connections)]


def metadata_of(token: Optional[Token]) -> Metadata:
    if token is None:
        return ()
    return (("authorization", "Bearer " + (token() if callable(token) else token)),)
