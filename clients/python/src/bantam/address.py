"""Where the daemon is, and how to reach it. Nothing is sent here: a channel connects with its first call."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from .errors import Unavailable

# The daemon limits its own messages by a setting; what comes from it is not limited a second time.
_OPTIONS: list[tuple[str, str | int]] = [("grpc.max_receive_message_length", -1)]
# Without it grpcio sends the socket's path as the host of a request, which servers refuse.
_UNIX_OPTIONS: list[tuple[str, str | int]] = [*_OPTIONS, ("grpc.default_authority", "localhost")]


@dataclass(frozen=True)
class Tls:
    """How to know a daemon behind TLS, and how it knows us: paths of PEM files."""

    #: Authorities to trust; none is the machine's own.
    ca: str | os.PathLike[str] | None = None
    #: Our certificate, for a daemon that asks for one (mTLS).
    certificate: str | os.PathLike[str] | None = None
    #: Its private key.
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: expected certificate and key together, found one of them; give both or none")
        return grpc.ssl_channel_credentials(_bytes(self.ca), _bytes(self.key), _bytes(self.certificate))


@dataclass(frozen=True)
class Route:
    """Everything that a channel is made of."""

    target: str
    options: list[tuple[str, str | int]]
    credentials: grpc.ChannelCredentials | None


def usual_socket() -> str:
    """Where a daemon of this user listens unless somebody said otherwise."""
    if named := os.environ.get("BANTAM_SOCKET"):
        return named
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(folder):
        folder = os.path.join("/tmp", f"bantam-{os.getuid()}")
    return os.path.join(folder, "bantam.sock")


def route(address: str | os.PathLike[str] | None, token: str | None, tls: Tls | None) -> Route:
    """What an address means: a path or `unix:PATH` is a socket, all else `HOST:PORT`; none is the usual socket."""
    text = usual_socket() if address is None else os.fspath(address)
    if text.startswith("unix:") or text.startswith(("/", ".")):
        return _by_socket(text.removeprefix("unix:"), token, tls)
    if "://" in text or ":" not in text:
        raise ValueError(f'address: expected a path, "unix:PATH" or "HOST:PORT", found {text!r}')
    if tls is not None:
        return Route(text, _OPTIONS, _with_token(tls.credentials(), token))
    if token is None:
        return Route(text, _OPTIONS, None)
    if not _is_local(text):
        raise ValueError(f"token: {text} is not this machine and would see the token unencrypted; give tls as well")
    local = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    return Route(text, _OPTIONS, _with_token(local, token))


def _by_socket(path: str, token: str | None, tls: Tls | None) -> Route:
    if token is not None or tls is not None:
        raise ValueError("a unix socket takes neither token nor tls: the daemon knows its user")
    path = os.path.abspath("/" + path.lstrip("/") if path.startswith("//") else path)
    if not os.path.exists(path):
        raise Unavailable(
            grpc.StatusCode.UNAVAILABLE,
            f"expected the socket of a daemon at {path}, found nothing; start one with `bantam serve`, "
            "or name its socket (the argument, or BANTAM_SOCKET)",
        )
    return Route(f"unix:{path}", _UNIX_OPTIONS, None)


def _with_token(credentials: grpc.ChannelCredentials, token: str | None) -> grpc.ChannelCredentials:
    if token is None:
        return credentials
    return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))


def _is_local(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bytes(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
