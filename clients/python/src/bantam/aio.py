"""The client for asyncio: the same calls as `client.py`, awaited."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import grpc
import grpc.aio

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
) -> AsyncClient:
    """As `bantam.connect`. Call it where the event loop runs."""
    way = route(address, token, tls)
    if way.credentials is None:
        return AsyncClient(grpc.aio.insecure_channel(way.target, options=way.options))
    return AsyncClient(grpc.aio.secure_channel(way.target, way.credentials, options=way.options))


class AsyncStream(Generic[_Response]):
    """Messages as they come. Leaving a loop over it, `close`, or losing the last reference to it ends the call, and
    with it the daemon's work. It can be read once."""

    def __init__(self, call: Any) -> None:
        self._call: Any = call
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[_Response]:
        try:
            while True:
                try:
                    response = await self.__anext__()
                except StopAsyncIteration:
                    return
                yield response
        finally:
            self.close()

    async def __anext__(self) -> _Response:
        response: _Response = await self._next_message()
        return response

    def close(self) -> None:
        """Ends the call; what came stays."""
        self._closed = True
        self._call.cancel()

    async def _next_message(self) -> Any:
        if self._closed:
            # grpc would answer as if the task were cancelled.
            raise Cancelled(grpc.StatusCode.CANCELLED, "the call was ended on this side")
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise translate(error) from None
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class AsyncGeneration(Progress, AsyncStream[generation.Token]):
    """A text in the making: iterate for its tokens, or ask for all of it with `text`."""

    def __init__(self, call: Any) -> None:
        Progress.__init__(self)
        AsyncStream.__init__(self, call)

    async def __anext__(self) -> generation.Token:
        while True:
            event: Event = await self._next_message()
            token = self._take(event)
            if token is not None:
                return token

    async def text(self) -> str:
        """The whole text, once it has come: what was read before included."""
        if self.finished is None:
            async for _ in self:
                pass
        return self.text_so_far

    async def reply(self) -> generation.ChatMessage:
        """Of a chat the whole reply, as the next request of the conversation takes it."""
        await self.text()
        return reply_of(self.finished)


class AsyncClient:
    """A connection to a daemon, of one event loop. Every method takes `timeout`, in seconds; none is for ever.

    `model` is a name that the daemon's folders hold, a path on its machine, or a handle; empty is the small model that
    the daemon carries. Failures are `bantam.BantamError`s.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        #: The services as they are in the contract, for what has no method here; their errors are grpc's.
        self.generation_service = GenerationServiceStub(channel)
        self.model_service = ModelServiceStub(channel)
        self.job_service = JobServiceStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and all its calls."""
        await self.channel.close()

    def generate(
        self,
        prompt: requests.Text,
        *,
        model: str = "",
        max_new_tokens: int | None = None,
        timeout: float | None = None,
        **settings: Unpack[requests.GenerationSettings],
    ) -> AsyncGeneration:
        """Continues a text (or token ids)."""
        request = requests.generate(model, prompt, max_new_tokens, settings)
        return AsyncGeneration(self.generation_service.Generate(request, timeout=timeout))

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
    ) -> AsyncGeneration:
        """Answers a conversation through the model's chat template; a text alone is its first message."""
        request = requests.chat(model, messages, max_new_tokens, tools, template_arguments, now, settings)
        return AsyncGeneration(self.generation_service.Chat(request, timeout=timeout))

    async def tokenize(
        self, text: str, *, model: str = "", special: bool | None = None, timeout: float | None = None
    ) -> list[int]:
        """A text as token ids; `special` is whether with those that the tokenizer adds to every text."""
        request = requests.tokenize(model, text, special)
        return list((await _answer(self.generation_service.Tokenize, request, timeout)).ids)

    async def tokenize_chat(
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
        return await _answer(self.generation_service.Tokenize, request, timeout)

    async def detokenize(
        self, ids: Sequence[int], *, model: str = "", special: bool = False, timeout: float | None = None
    ) -> str:
        """Token ids as text; `special` is whether special tokens are spelled out."""
        request = generation_service.DetokenizeRequest(model=model, ids=ids, special=special)
        return (await _answer(self.generation_service.Detokenize, request, timeout)).text

    async def score(
        self, text: requests.Text, *, model: str = "", first_scored: int | None = None, timeout: float | None = None
    ) -> generation_service.ScoreResponse:
        """How probable the tokens of a text are, each given all before it."""
        return await _answer(self.generation_service.Score, requests.score(model, text, first_scored), timeout)

    async def embed(
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
        answer = await _answer(self.generation_service.Embed, request, timeout)
        return [list(one.values) for one in answer.embeddings]

    async def models(self, *, timeout: float | None = None) -> list[model_messages.Model]:
        """All models that the daemon knows, resident ones first."""
        request = model_service.ModelServiceListRequest()
        return list((await _answer(self.model_service.List, request, timeout)).models)

    async def inspect(
        self, model: str = "", *, tensors: bool = False, timeout: float | None = None
    ) -> model_service.InspectResponse:
        """What a checkpoint is; nothing is loaded."""
        request = model_service.InspectRequest(model=model, tensors=tensors)
        return await _answer(self.model_service.Inspect, request, timeout)

    async def plan(
        self, model: str = "", *, timeout: float | None = None, **settings: Unpack[requests.LoadSettings]
    ) -> model_service.PlanResponse:
        """Every byte that a load would take; nothing is loaded."""
        request = model_service.PlanRequest(model=model, options=requests.load_options(settings))
        return await _answer(self.model_service.Plan, request, timeout)

    async def load(
        self,
        model: str = "",
        *,
        progress: Callable[[model_service.LoadProgress], object] | None = None,
        timeout: float | None = None,
        **settings: Unpack[requests.LoadSettings],
    ) -> model_messages.Model:
        """Loads a model and waits until it can answer; `progress` is called meanwhile."""
        request = model_service.LoadRequest(model=model, options=requests.load_options(settings))
        call: AsyncStream[model_service.LoadResponse] = AsyncStream(self.model_service.Load(request, timeout=timeout))
        async for step in call:
            if step.HasField("loaded"):
                return step.loaded
            if step.HasField("progress") and progress is not None:
                progress(step.progress)
        raise AssertionError("the daemon ended a load without its model")

    async def unload(self, model: str = "", *, timeout: float | None = None) -> model_service.UnloadResponse:
        """Takes a model out of memory, once its running requests have ended."""
        return await _answer(self.model_service.Unload, model_service.UnloadRequest(model=model), timeout)

    async def set_budget(self, *, timeout: float | None = None, **bytes_by_device: int) -> list[model_messages.DeviceUse]:
        """Changes how many bytes models may use: `set_budget(ram=8 << 30)`. All devices as they are then."""
        request = requests.budget(bytes_by_device)
        return list((await _answer(self.model_service.SetBudget, request, timeout)).devices)

    def watch(
        self, *, figures_every: requests.Span | None = None, timeout: float | None = None
    ) -> AsyncStream[model_service.WatchResidencyResponse]:
        """All models and budgets as they are, then every change."""
        return AsyncStream(self.model_service.WatchResidency(requests.watch(figures_every), timeout=timeout))

    async def train(
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
        return (await _answer(self.job_service.Train, request, timeout)).job

    async def jobs(self, *, timeout: float | None = None) -> list[job_service.Job]:
        """All jobs that the daemon knows, the youngest first."""
        request = job_service.JobServiceListRequest()
        return list((await _answer(self.job_service.List, request, timeout)).jobs)

    def watch_job(self, job: str | job_service.Job, *, timeout: float | None = None) -> AsyncStream[job_service.WatchResponse]:
        """A job as it is, then what happens to it until it is over."""
        return AsyncStream(self.job_service.Watch(requests.watch_job(job), timeout=timeout))

    async def cancel_job(self, job: str | job_service.Job, *, timeout: float | None = None) -> job_service.Job:
        """Ends a job: a training saves a checkpoint first, from which the same request goes on."""
        return (await _answer(self.job_service.Cancel, requests.cancel_job(job), timeout)).job


async def _answer(
    method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response], request: _Request, timeout: float | None
) -> _Response:
    try:
        return await method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise translate(error) from None
