"""Requests from plain Python values, for both clients. What the daemon checks is not checked here a second time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union

from google.protobuf.duration_pb2 import Duration

from .v1 import generation_pb2 as generation
from .v1 import generation_service_pb2 as generation_service
from .v1 import job_service_pb2 as job_service
from .v1 import model_pb2 as model
from .v1 import model_service_pb2 as model_service

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

#: A text, or token ids that are taken as they are.
Text: TypeAlias = "Union[str, Sequence[int]]"
#: Seconds, or a span of time.
Span: TypeAlias = "Union[float, timedelta]"


class ToolCallFields(TypedDict, total=False):
    """A tool call as a dictionary, with the fields of `bantam.v1.ToolCall`."""

    id: str
    name: str
    arguments: str


class MessageFields(TypedDict, total=False):
    """A message as a dictionary, with the fields of `bantam.v1.ChatMessage`."""

    role: str
    content: str
    thinking: str
    tool_calls: list[ToolCallFields]
    tool_call_id: str
    name: str


class ToolFields(TypedDict, total=False):
    """A tool as a dictionary, with the fields of `bantam.v1.Tool`; the schema may be one as well."""

    name: str
    description: str
    parameters: Union[str, Mapping[str, Any]]


#: A text said by the user, a dictionary with `role` and `content`, or the daemon's own message, such as a reply.
Message: TypeAlias = "Union[str, MessageFields, generation.ChatMessage]"
#: A dictionary with `name`, `description` and `parameters`, or the daemon's own message.
Tool: TypeAlias = "Union[ToolFields, generation.Tool]"


class PrefixCacheFields(TypedDict, total=False):
    """What a request shares of what was read before it, with the fields of `bantam.v1.PrefixCache`."""

    off: bool
    scope: str


class GenerationSettings(TypedDict, total=False):
    """How to choose tokens, when to end, what to tell: `bantam.v1.GenerationOptions`, where every field is described.
    What is not given is the model's own default."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram: int
    logit_bias: Mapping[int, float]
    seed: int
    stop: Union[str, Sequence[str]]
    ignore_eos: bool
    log_probabilities: bool
    alternatives: int
    prefix_cache: PrefixCacheFields
    adapter: str


class LoadSettings(TypedDict, total=False):
    """How to load a model: `bantam.v1.LoadOptions`, where every field is described. What is not given is the daemon's
    setting."""

    precision: Literal["exact", "fast"]
    kv: Literal["f32", "f16", "int8"]
    context: int
    slots: int
    chunk: int
    quantization: str
    head: str
    experts: str
    threads: int
    pin: bool
    ttl: Span
    no_cache: bool
    cache_positions: int
    adapter_bytes: int


def generate(
    name: str, prompt: Text, max_new_tokens: int | None, settings: GenerationSettings
) -> generation_service.GenerateRequest:
    request = generation_service.GenerateRequest(
        model=name, max_new_tokens=max_new_tokens, options=_generation_options(settings)
    )
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_ids.CopyFrom(generation.TokenIds(ids=prompt))
    return request


def chat(
    name: str,
    messages: str | Iterable[Message],
    max_new_tokens: int | None,
    tools: Iterable[Tool],
    template_arguments: Mapping[str, object] | None,
    now: str | None,
    settings: GenerationSettings,
) -> generation_service.ChatRequest:
    return generation_service.ChatRequest(
        model=name,
        messages=_messages(messages),
        max_new_tokens=max_new_tokens,
        tools=[_tool(tool) for tool in tools],
        options=_generation_options(settings),
        template_arguments=_as_json(template_arguments),
        now=now,
    )


def tokenize(name: str, text: str, special: bool | None) -> generation_service.TokenizeRequest:
    return generation_service.TokenizeRequest(model=name, text=text, special=special)


def tokenize_chat(
    name: str,
    messages: str | Iterable[Message],
    tools: Iterable[Tool],
    template_arguments: Mapping[str, object] | None,
    now: str | None,
    generation_prompt: bool | None,
) -> generation_service.TokenizeRequest:
    conversation = generation.Conversation(
        messages=_messages(messages),
        tools=[_tool(tool) for tool in tools],
        template_arguments=_as_json(template_arguments),
        now=now,
    )
    return generation_service.TokenizeRequest(
        model=name, conversation=conversation, generation_prompt=generation_prompt
    )


def score(name: str, text: Text, first_scored: int | None) -> generation_service.ScoreRequest:
    request = generation_service.ScoreRequest(model=name, first_scored=first_scored)
    if isinstance(text, str):
        request.text = text
    else:
        request.ids.CopyFrom(generation.TokenIds(ids=text))
    return request


def embed(
    name: str, texts: Iterable[Text], pooling: Literal["mean", "last"], normalize: bool
) -> generation_service.EmbedRequest:
    if isinstance(texts, str):
        # A text is itself a sequence of texts, of one letter each.
        raise TypeError("embed: expected a list of texts, found one text; put it in a list")
    return generation_service.EmbedRequest(
        model=name,
        inputs=[_embed_input(text) for text in texts],
        pooling=generation_service.Pooling.Value(_named("pooling", "POOLING", pooling, ("mean", "last"))),
        normalize=normalize,
    )


def load_options(settings: LoadSettings) -> model.LoadOptions:
    options = model.LoadOptions()
    for key, value in _known("load", settings, LoadSettings):
        if key == "precision":
            options.precision = model.Precision.Value(_named(key, "PRECISION", value, ("exact", "fast")))
        elif key == "kv":
            options.kv = model.KvType.Value(_named(key, "KV_TYPE", value, ("f32", "f16", "int8")))
        elif key == "ttl":
            options.ttl.CopyFrom(duration(value))
        else:
            setattr(options, key, value)
    return options


def budget(bytes_by_device: Mapping[str, int]) -> model_service.SetBudgetRequest:
    budgets = [model_service.DeviceBudget(device=device, bytes=count) for device, count in bytes_by_device.items()]
    return model_service.SetBudgetRequest(budgets=budgets)


def watch(figures_every: Span | None) -> model_service.WatchResidencyRequest:
    every = None if figures_every is None else duration(figures_every)
    return model_service.WatchResidencyRequest(figures_every=every)


def duration(span: Span) -> Duration:
    made = Duration()
    made.FromTimedelta(span if isinstance(span, timedelta) else timedelta(seconds=span))
    return made


def _generation_options(settings: GenerationSettings) -> generation.GenerationOptions:
    options = generation.GenerationOptions()
    for key, value in _known("generate", settings, GenerationSettings):
        if key == "logit_bias":
            options.logit_bias.extend(generation.LogitBias(id=token, bias=bias) for token, bias in value.items())
        elif key == "stop":
            options.stop.extend([value] if isinstance(value, str) else value)
        elif key == "prefix_cache":
            options.prefix_cache.CopyFrom(generation.PrefixCache(**value))
        else:
            setattr(options, key, value)
    return options


def _known(verb: str, settings: Mapping[str, Any], kind: type) -> Iterable[tuple[str, Any]]:
    """Those that were given; None is as if it were not."""
    unknown = settings.keys() - kind.__annotations__.keys()
    if unknown:
        raise TypeError(f"{verb}: there is no setting {sorted(unknown)[0]!r}; there are {', '.join(kind.__annotations__)}")
    return [(key, value) for key, value in settings.items() if value is not None]


def _named(key: str, prefix: str, value: str, expected: Sequence[str]) -> str:
    if value not in expected:
        raise ValueError(f"{key}: expected {' or '.join(map(repr, expected))}, found {value!r}")
    return f"{prefix}_{value.upper()}"


def _messages(messages: str | Iterable[Message]) -> list[generation.ChatMessage]:
    return [_message(one) for one in ([messages] if isinstance(messages, str) else messages)]


def _message(message: Message) -> generation.ChatMessage:
    if isinstance(message, generation.ChatMessage):
        return message
    fields: Any = {"role": "user", "content": message} if isinstance(message, str) else message
    return generation.ChatMessage(**fields)


def _tool(tool: Tool) -> generation.Tool:
    if isinstance(tool, generation.Tool):
        return tool
    fields: Any = dict(tool)
    if isinstance(fields.get("parameters"), Mapping):
        fields["parameters"] = json.dumps(fields["parameters"])
    return generation.Tool(**fields)


def _embed_input(text: Text) -> generation_service.EmbedInput:
    if isinstance(text, str):
        return generation_service.EmbedInput(text=text)
    return generation_service.EmbedInput(ids=generation.TokenIds(ids=text))


def _as_json(values: Mapping[str, object] | None) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in (values or {}).items()}


def train(
    settings: str | Mapping[str, object], folder: str | os.PathLike[str] | None, overrides: Mapping[str, object]
) -> job_service.TrainRequest:
    # JSON is YAML.
    text = settings if isinstance(settings, str) else json.dumps(dict(settings))
    changes = {key: value if isinstance(value, str) else json.dumps(value) for key, value in overrides.items()}
    return job_service.TrainRequest(yaml=text, overrides=changes, folder=os.path.abspath(folder or os.getcwd()))


def watch_job(job: str | job_service.Job) -> job_service.WatchRequest:
    return job_service.WatchRequest(job_id=job if isinstance(job, str) else job.id)


def cancel_job(job: str | job_service.Job) -> job_service.CancelRequest:
    return job_service.CancelRequest(job_id=job if isinstance(job, str) else job.id)
