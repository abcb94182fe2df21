"""Client of the Bantam daemon.

    import bantam

    with bantam.connect() as client:
        for token in client.generate("Once upon a time", max_new_tokens=64):
            print(token.text, end="", flush=True)

`bantam.aio.connect` is the same for asyncio. What comes back are the daemon's own messages, which are described in
`bantam.v1`.
"""

from . import aio
from .address import Tls, usual_socket
from .aio import AsyncClient, AsyncGeneration, AsyncStream
from .client import Client, Generation, Stream, connect
from .errors import (
    BantamError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Details,
    FailedPrecondition,
    InvalidArgument,
    NotAllowed,
    NotFound,
    NotYet,
    ResourceExhausted,
    Unavailable,
    Violation,
)

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "AsyncStream",
    "BantamError",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Details",
    "FailedPrecondition",
    "Generation",
    "InvalidArgument",
    "NotAllowed",
    "NotFound",
    "NotYet",
    "ResourceExhausted",
    "Stream",
    "Tls",
    "Unavailable",
    "Violation",
    "aio",
    "connect",
    "usual_socket",
]
