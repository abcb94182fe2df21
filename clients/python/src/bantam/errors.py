"""What went wrong, in the daemon's words and with its details (google.rpc) taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong or missing."""

    #: Of a wrong request the field, such as `options.top_p`; of missing room what there is too little of.
    subject: str
    #: What was expected, what was found, what to do.
    description: str


@dataclass(frozen=True)
class Details:
    """What the daemon told beside its message; what it did not tell is empty."""

    #: The fields of the request that are wrong.
    fields: tuple[Violation, ...] = ()
    #: Which bytes or places are missing.
    missing: tuple[Violation, ...] = ()
    #: What has to be changed first.
    preconditions: tuple[Violation, ...] = ()
    #: Seconds after which the same request may succeed.
    retry_after: float | None = None
    #: What was not found, such as a model's name.
    resource: str | None = None
    #: One word for programs.
    reason: str | None = None
    #: Figures that go with the reason.
    figures: dict[str, str] = field(default_factory=dict)


class BantamError(Exception):
    """A call that failed. `str(error)` is the daemon's sentence."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Details = Details()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def field(self) -> str | None:
        """The first field that is wrong."""
        return self.details.fields[0].subject if self.details.fields else None

    @property
    def missing(self) -> tuple[Violation, ...]:
        """Which bytes or places are missing."""
        return self.details.missing

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the same request may succeed; None where waiting alone does not help."""
        return self.details.retry_after


class InvalidArgument(BantamError):
    """A field of the request is wrong."""


class NotFound(BantamError):
    """There is no such model."""


class ResourceExhausted(BantamError):
    """Bytes or places are missing."""


class FailedPrecondition(BantamError):
    """Something else has to change first."""


class DataLoss(BantamError):
    """The model's file or memory broke."""


class Unavailable(BantamError):
    """There is no daemon, or it is about to end."""


class NotYet(BantamError):
    """The daemon knows of it, but cannot do it yet."""


class NotAllowed(BantamError):
    """The daemon does not let this client in."""


class DeadlineExceeded(BantamError):
    """The call's timeout is over."""


class Cancelled(BantamError):
    """The call was ended on this side."""


_BY_CODE: dict[grpc.StatusCode, type[BantamError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: NotYet,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def translate(error: grpc.RpcError) -> BantamError:
    """The error of a call as one of ours."""
    # Every error of a call, sync or asyncio, has these three; the type of grpcio does not say so.
    call: Any = error
    code: grpc.StatusCode = call.code()
    trailers = call.trailing_metadata() or ()
    packed = next((value for key, value in trailers if key == _DETAILS_KEY), b"")
    kind = _BY_CODE.get(code, BantamError)
    return kind(code, call.details() or code.name, _unpack(packed))


def _unpack(packed: bytes) -> Details:
    try:
        status = status_pb2.Status.FromString(packed)
        return _gather(status)
    except DecodeError:
        # The code and the message still hold.
        return Details()


def _gather(status: status_pb2.Status) -> Details:
    bad = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    precondition = error_details_pb2.PreconditionFailure()
    retry = error_details_pb2.RetryInfo()
    resource = error_details_pb2.ResourceInfo()
    info = error_details_pb2.ErrorInfo()
    known = (bad, quota, precondition, retry, resource, info)
    found = [message for message in known for detail in status.details if detail.Unpack(message)]
    return Details(
        fields=tuple(Violation(one.field, one.description) for one in bad.field_violations),
        missing=tuple(Violation(one.subject, one.description) for one in quota.violations),
        preconditions=tuple(Violation(one.subject, one.description) for one in precondition.violations),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry in found else None,
        resource=resource.resource_name or None,
        reason=info.reason or None,
        figures=dict(info.metadata),
    )
