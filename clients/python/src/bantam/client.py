"""The client for ordinary programs: calls wait for their answers. `aio.py` is the same for asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import grpc

from . import requests
from .address import Tls, route
from .errors import Cancelled, translate
from .streams import Event, Progress, reply_of
from .v1 import generation_pb2 as generation
from .v1 import generation_service_pb2 as generation_service
from .v1 import job_service_pb2 as job_service
from .v1 import model_pb2 as model_messages
from .v1 import model_service_pb2 as model_service
from .v1.generation_service_pb2_grpc import GenerationServiceStub
from .v1.job_service_pb2_grpc import JobServiceStub
from .v1.model_service_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def connect(
    address: str | os.PathLike[str] | None = None, *, token: str | None = None, tls: Tls | None = None
) -> Client:
    """A client of the daemon at `address`: a path or `unix:PATH`, or `HOST:PORT`. Without one, of the socket that
    BANTAM_SOCKET names, or of the one where a daemon of this user listens ($XDG_RUNTIME_DIR/bantam.sock)."""
    way = route(address, token, tls)
    if way.credentials is None:
        return Client(grpc.insecure_channel(way.target, options=way.options))
    return Client(grpc.secure_channel(way.target, way.credentials, options=way.options))


class Stream(Generic[_Response]):
    """Messages as they come. Leaving a loop over it, `close`, or losing the last reference to it ends the call, and
    with it the daemon's work. It can be read once."""

    def __init__(self, call: Any) -> None:
        self._call: Any = call

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[_Response]:
        try:
            while True:
                try:
                    yield next(self)
                except StopIteration:
                    return
        finally:
            self.close()

    def __next__(self) -> _Response:
        response: _Response = self._next_message()
        return response

    def close(self) -> None:
        """Ends the call; what came stays."""
        self._call.cancel()

    def _next_message(self) -> Any:
        try:
            return next(self._call)
        except grpc.FutureCancelledError:
            raise Cancelled(grpc.StatusCode.CANCELLED, "the call was ended on this side") from None
        except grpc.RpcError as error:
            raise translate(error) from None


class Generation(Progress, Stream[generation.Token]):
    """A text in the making: iterate for its tokens, or ask for all of it with `text`."""

    def __init__(self, call: Any) -> None:
        Progress.__init__(self)
        Stream.__init__(self, call)

    def __next__(self) -> generation.Token:
        while True:
            event: Event = self._next_message()
            token = self._take(event)
            if token is not None:
                return token

    def text(self) -> str:
        """The whole text, once it has come: what was read before included."""
        for _ in self if self.finished is None else ():
            pass
        return self.text_so_far

    def reply(self) -> generation.ChatMessage:
        """Of a chat the whole reply, as the next request of the conversation takes it."""
        self.text()
        return reply_of(self.finished)


class Client:
    """A connection to a daemon. Threads may share it. Every method takes `timeout`, in seconds; none is for ever.

    `model` is a name that the daemon's folders hold, a path on its machine, or a handle; empty is the small model that
    the daemon carries. Failures are `bantam.BantamError`s.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        #: The services as they are in the contract, for what has no method here; their errors are grpc's.
        self.generation_service = GenerationServiceStub(channel)
        self.model_service = ModelServiceStub(channel)
        self.job_service = JobServiceStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and all its calls."""
        self.channel.close()

    def generate(
        self,
        prompt: requests.Text,
        *,
        model: str = "",
        max_new_tokens: int | None = None,
        timeout: float | None = None,
        **settings: Unpack[requests.GenerationSettings],
    ) -> Generation:
        """Continues a text (or token ids)."""
        request = requests.generate(model, prompt, max_new_tokens, settings)
        return Generation(self.generation_service.Generate(request, timeout=timeout))

    def chat(
        self,
        messages: str | Iterable[requests.Message],
        *,
        model: str = "",
        max_new_tokens: int | None = None,
        tools: Iterable[requests.Tool] = (),
        template_arguments: Mapping[str, object] | None = None,
        now: str | None = None,
        timeout: float | None = None,
        **settings: Unpack[requests.GenerationSettings],
    ) -> Generation:
        """Answers a conversation through the model's chat template; a text alone is its first message."""
        request = requests.chat(model, messages, max_new_tokens, tools, template_arguments, now, settings)
        return Generation(self.generation_service.Chat(request, timeout=timeout))

    def tokenize(
        self, text: str, *, model: str = "", special: bool | None = None, timeout: float | None = None
    ) -> list[int]:
        """A text as token ids; `special` is whether with those that the tokenizer adds to every text."""
        request = requests.tokenize(model, text, special)
        return list(_answer(self.generation_service.Tokenize, request, timeout).ids)

    def tokenize_chat(
        self,
        messages: str | Iterable[requests.Message],
        *,
        model: str = "",
        tools: Iterable[requests.Tool] = (),
        template_arguments: Mapping[str, object] | None = None,
        now: str | None = None,
        generation_prompt: bool | None = None,
        timeout: float | None = None,
    ) -> generation_service.TokenizeResponse:
        """A conversation as token ids, and as the text that the model's template makes of it."""
        request = requests.tokenize_chat(model, messages, tools, template_arguments, now, generation_prompt)
        return _answer(self.generation_service.Tokenize, request, timeout)

    def detokenize(
        self, ids: Sequence[int], *, model: str = "", special: bool = False, timeout: float | None = None
    ) -> str:
        """Token ids as text; `special` is whether special tokens are spelled out."""
        request = generation_service.DetokenizeRequest(model=model, ids=ids, special=special)
        return _answer(self.generation_service.Detokenize, request, timeout).text

    def score(
        self, text: requests.Text, *, model: str = "", first_scored: int | None = None, timeout: float | None = None
    ) -> generation_service.ScoreResponse:
        """How probable the tokens of a text are, each given all before it."""
        return _answer(self.generation_service.Score, requests.score(model, text, first_scored), timeout)

    def embed(
        self,
        texts: Iterable[requests.Text],
        *,
        model: str = "",
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = False,
        timeout: float | None = None,
    ) -> list[list[float]]:
        """A vector for each text."""
        request = requests.embed(model, texts, pooling, normalize)
        return [list(one.values) for one in _answer(self.generation_service.Embed, request, timeout).embeddings]

    def models(self, *, timeout: float | None = None) -> list[model_messages.Model]:
        """All models that the daemon knows, resident ones first."""
        request = model_service.ModelServiceListRequest()
        return list(_answer(self.model_service.List, request, timeout).models)

    def inspect(
        self, model: str = "", *, tensors: bool = False, timeout: float | None = None
    ) -> model_service.InspectResponse:
        """What a checkpoint is; nothing is loaded."""
        request = model_service.InspectRequest(model=model, tensors=tensors)
        return _answer(self.model_service.Inspect, request, timeout)

    def plan(
        self, model: str = "", *, timeout: float | None = None, **settings: Unpack[requests.LoadSettings]
    ) -> model_service.PlanResponse:
        """Every byte that a load would take; nothing is loaded."""
        request = model_service.PlanRequest(model=model, options=requests.load_options(settings))
        return _answer(self.model_service.Plan, request, timeout)

    def load(
        self,
        model: str = "",
        *,
        progress: Callable[[model_service.LoadProgress], object] | None = None,
        timeout: float | None = None,
        **settings: Unpack[requests.LoadSettings],
    ) -> model_messages.Model:
        """Loads a model and waits until it can answer; `progress` is called meanwhile."""
        request = model_service.LoadRequest(model=model, options=requests.load_options(settings))
        call: Stream[model_service.LoadResponse] = Stream(self.model_service.Load(request, timeout=timeout))
        for step in call:
            if step.HasField("loaded"):
                return step.loaded
            if step.HasField("progress") and progress is not None:
                progress(step.progress)
        raise AssertionError("the daemon ended a load without its model")

    def unload(self, model: str = "", *, timeout: float | None = None) -> model_service.UnloadResponse:
        """Takes a model out of memory, once its running requests have ended."""
        return _answer(self.model_service.Unload, model_service.UnloadRequest(model=model), timeout)

    def set_budget(self, *, timeout: float | None = None, **bytes_by_device: int) -> list[model_messages.DeviceUse]:
        """Changes how many bytes models may use: `set_budget(ram=8 << 30)`. All devices as they are then."""
        request = requests.budget(bytes_by_device)
        return list(_answer(self.model_service.SetBudget, request, timeout).devices)

    def watch(
        self, *, figures_every: requests.Span | None = None, timeout: float | None = None
    ) -> Stream[model_service.WatchResidencyResponse]:
        """All models and budgets as they are, then every change."""
        return Stream(self.model_service.WatchResidency(requests.watch(figures_every), timeout=timeout))

    def train(
        self,
        settings: str | Mapping[str, object],
        *,
        folder: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        **overrides: object,
    ) -> job_service.Job:
        """Begins a training run by the text of a YAML file, or by keys with values; keyword arguments win over both.
        Relative paths begin at `folder`, without it at the working directory. `watch_job` tells how it goes on."""
        request = requests.train(settings, folder, overrides)
        return _answer(self.job_service.Train, request, timeout).job

    def jobs(self, *, timeout: float | None = None) -> list[job_service.Job]:
        """All jobs that the daemon knows, the youngest first."""
        request = job_service.JobServiceListRequest()
        return list(_answer(self.job_service.List, request, timeout).jobs)

    def watch_job(self, job: str | job_service.Job, *, timeout: float | None = None) -> Stream[job_service.WatchResponse]:
        """A job as it is, then what happens to it until it is over."""
        return Stream(self.job_service.Watch(requests.watch_job(job), timeout=timeout))

    def cancel_job(self, job: str | job_service.Job, *, timeout: float | None = None) -> job_service.Job:
        """Ends a job: a training saves a checkpoint first, from which the same request goes on."""
        return _answer(self.job_service.Cancel, requests.cancel_job(job), timeout).job


def _answer(
    method: grpc.UnaryUnaryMultiCallable[_Request, _Response], request: _Request, timeout: float | None
) -> _Response:
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise translate(error) from None
