"""Client of expertd: Mixture-of-Experts layers as a service. See the README beside pyproject.toml."""
from .bf16 import from_bf16, to_bf16
from .channel import Tls
from .client import Client, Stream
from .errors import (
    Cancelled,
    DeadlineExceeded,
    ExpertdError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from .messages import Answer, Routing, Stages
from .retry import Retry
from .rows import RegionRows
from .session import DeviceRegion, Session

__all__ = [
    "Answer", "Cancelled", "Client", "DeadlineExceeded", "DeviceRegion", "ExpertdError", "FailedPrecondition", "Internal",
    "InvalidArgument", "NotFound", "PermissionDenied", "RegionRows", "ResourceExhausted", "Retry", "Routing", "Session", "Stages",
    "Stream", "Tls", "Unauthenticated", "Unavailable", "Unimplemented", "from_bf16", "to_bf16",
]  # fmt: skip
