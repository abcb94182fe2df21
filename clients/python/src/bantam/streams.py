"""What streams have in common, sync or asyncio: which of the daemon's messages came so far."""

from __future__ import annotations

from typing import Union

from .v1 import generation_pb2 as generation
from .v1 import generation_service_pb2 as generation_service

Event = Union[generation_service.GenerateResponse, generation_service.ChatResponse]


class Progress:
    """A generation so far."""

    def __init__(self) -> None:
        #: What was told when it began: tokens of the prompt, the seed, the wait.
        self.started: generation.Started | None = None
        #: What was told at its end: the reason, usage, timings; of a chat the whole reply.
        self.finished: generation.Finished | None = None
        #: The tokens that came so far.
        self.tokens: list[generation.Token] = []

    @property
    def text_so_far(self) -> str:
        """The text of the tokens that came so far."""
        return "".join(token.text for token in self.tokens)

    def _take(self, event: Event) -> generation.Token | None:
        """Notes a message; a token is also handed on."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.started = event.started
        elif kind == "finished":
            self.finished = event.finished
        elif kind == "token":
            self.tokens.append(event.token)
            return event.token
        # Kinds that are not known yet are passed over, as the contract has it.
        return None


def reply_of(finished: generation.Finished | None) -> generation.ChatMessage:
    """The reply of a chat that has ended."""
    if finished is None or not finished.HasField("reply"):
        raise ValueError("reply: expected a chat that came to its end, found none; use text() of a generation")
    return finished.reply
