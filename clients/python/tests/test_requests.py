"""What needs no daemon: requests, addresses, errors, and that both clients are the same."""

from __future__ import annotations

import inspect
import os
import unittest
from datetime import timedelta
from typing import Any
from unittest import mock

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import bantam
from bantam import address, errors, requests
from bantam.v1 import generation_pb2, model_pb2


#: Options that the daemon refuses so far.
NOT_YET = ["structured_output", "speculation", "priority"]


class Requests(unittest.TestCase):
    def test_every_option_of_the_contract_has_its_setting(self) -> None:
        fields = [field.name for field in generation_pb2.GenerationOptions.DESCRIPTOR.fields]
        known = [name for name in fields if name not in NOT_YET]
        self.assertEqual(known, list(requests.GenerationSettings.__annotations__))
        known = [field.name for field in model_pb2.LoadOptions.DESCRIPTOR.fields]
        self.assertEqual(known, list(requests.LoadSettings.__annotations__))

    def test_settings_arrive_in_their_fields(self) -> None:
        request = requests.generate(
            "m", "text", 8, {"temperature": 0, "stop": "end", "logit_bias": {3: -1.5}, "seed": 2**64 - 1}
        )
        settings: requests.GenerationSettings = {"adapter": "mine", "prefix_cache": {"scope": "team"}}
        options = requests.generate("", "text", None, settings).options
        self.assertEqual((options.adapter, options.prefix_cache.scope), ("mine", "team"))
        self.assertEqual((request.model, request.prompt, request.max_new_tokens), ("m", "text", 8))
        self.assertTrue(request.options.HasField("temperature"))
        self.assertEqual(list(request.options.stop), ["end"])
        self.assertEqual([(one.id, one.bias) for one in request.options.logit_bias], [(3, -1.5)])
        self.assertEqual(request.options.seed, 2**64 - 1)

    def test_what_is_not_given_stays_absent(self) -> None:
        request = requests.generate("", [1, 2], None, {})
        self.assertEqual(list(request.prompt_ids.ids), [1, 2])
        self.assertFalse(request.HasField("max_new_tokens"))
        self.assertEqual(request.options.ByteSize(), 0)

    def test_a_misspelled_setting_is_named(self) -> None:
        settings: Any = {"tempurature": 1}
        with self.assertRaisesRegex(TypeError, "tempurature.*temperature"):
            requests.generate("", "text", None, settings)

    def test_conversations_are_texts_dictionaries_or_messages(self) -> None:
        tool: requests.Tool = {"name": "add", "parameters": {"type": "object"}}
        reply = generation_pb2.ChatMessage(role="assistant", content="yes")
        messages: list[requests.Message] = [{"role": "system", "content": "be short"}, "Hello", reply]
        request = requests.chat("", messages, None, [tool], {"thinking": False}, None, {})
        self.assertEqual([one.role for one in request.messages], ["system", "user", "assistant"])
        self.assertEqual(request.tools[0].parameters, '{"type": "object"}')
        self.assertEqual(dict(request.template_arguments), {"thinking": "false"})
        self.assertEqual(len(requests.chat("", "Hello", None, [], None, None, {}).messages), 1)

    def test_load_settings_have_names_and_spans(self) -> None:
        options = requests.load_options({"precision": "exact", "kv": "int8", "ttl": 90, "pin": False})
        self.assertEqual(options.precision, model_pb2.PRECISION_EXACT)
        self.assertEqual(options.kv, model_pb2.KV_TYPE_INT8)
        self.assertEqual(options.ttl.ToTimedelta(), timedelta(seconds=90))
        self.assertTrue(options.HasField("pin"))
        wrong: Any = {"precision": "double"}
        with self.assertRaisesRegex(ValueError, "precision: expected 'exact' or 'fast', found 'double'"):
            requests.load_options(wrong)

    def test_one_text_is_no_list_of_texts(self) -> None:
        with self.assertRaisesRegex(TypeError, "put it in a list"):
            requests.embed("", "text", "mean", False)


class Addresses(unittest.TestCase):
    def test_the_usual_socket(self) -> None:
        runtime = {"XDG_RUNTIME_DIR": "/run/user/7"}
        self.check_usual({"BANTAM_SOCKET": "/named.sock", **runtime}, "/named.sock")
        self.check_usual(runtime, "/run/user/7/bantam.sock")
        self.check_usual({}, os.path.join("/tmp", f"bantam-{os.getuid()}", "bantam.sock"))

    def check_usual(self, variables: dict[str, str], expected: str) -> None:
        with mock.patch.dict(os.environ, variables, clear=True):
            self.assertEqual(bantam.usual_socket(), expected)

    def test_a_socket_that_is_not_there_says_what_to_do(self) -> None:
        with self.assertRaisesRegex(bantam.Unavailable, "/nowhere/bantam.sock.*bantam serve"):
            bantam.connect("/nowhere/bantam.sock")

    def test_a_socket_is_asked_by_the_name_that_servers_take(self) -> None:
        for spelled in ("/dev/null", "unix:/dev/null", "unix:///dev/null"):
            way = address.route(spelled, None, None)
            self.assertEqual(way.target, "unix:/dev/null")
            self.assertIn(("grpc.default_authority", "localhost"), way.options)

    def test_a_token_stays_on_this_machine_or_behind_tls(self) -> None:
        for local in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
            self.assertIsNotNone(address.route(local, "secret", None).credentials)
        self.assertIsNotNone(address.route("example.org:1", "secret", bantam.Tls()).credentials)
        with self.assertRaisesRegex(ValueError, "unencrypted"):
            address.route("example.org:1", "secret", None)

    def test_what_is_no_address_is_refused(self) -> None:
        for wrong in ("http://localhost:1", "localhost"):
            with self.assertRaisesRegex(ValueError, "address: expected"):
                bantam.connect(wrong)


class Failure(grpc.RpcError):
    """As grpcio raises it."""

    def __init__(self, code: grpc.StatusCode, *details: Message) -> None:
        status = status_pb2.Status(message="a sentence")
        for detail in details:
            status.details.append(Packed())
            status.details[-1].Pack(detail)
        self._code, self._packed = code, status.SerializeToString()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "a sentence"

    def trailing_metadata(self) -> Any:
        return (("other", "x"), ("grpc-status-details-bin", self._packed))


class Errors(unittest.TestCase):
    def test_details_are_taken_apart(self) -> None:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="options.top_p", description="expected 0 to 1, found 2")
        wrong = errors.translate(Failure(grpc.StatusCode.INVALID_ARGUMENT, bad))
        self.assertIsInstance(wrong, bantam.InvalidArgument)
        self.assertEqual((str(wrong), wrong.field), ("a sentence", "options.top_p"))

        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject="ram", description="12 bytes are missing")
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=1.5))
        info = error_details_pb2.ErrorInfo(reason="NO_ROOM", metadata={"missing_bytes": "12"})
        full = errors.translate(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, quota, retry, info))
        self.assertIsInstance(full, bantam.ResourceExhausted)
        self.assertEqual(full.missing, (bantam.Violation("ram", "12 bytes are missing"),))
        self.assertEqual(full.retry_after, 1.5)
        self.assertEqual((full.details.reason, full.details.figures), ("NO_ROOM", {"missing_bytes": "12"}))

        resource = error_details_pb2.ResourceInfo(resource_name="absent")
        unknown = errors.translate(Failure(grpc.StatusCode.NOT_FOUND, resource))
        self.assertIsInstance(unknown, bantam.NotFound)
        self.assertEqual(unknown.details.resource, "absent")

    def test_an_error_without_details_or_with_broken_ones_is_one_still(self) -> None:
        failure = Failure(grpc.StatusCode.UNKNOWN)
        self.assertIs(type(errors.translate(failure)), bantam.BantamError)
        failure._packed = b"\xff\xff"
        plain = errors.translate(failure)
        self.assertEqual((plain.details, plain.retry_after, plain.field), (bantam.Details(), None, None))


class Clients(unittest.TestCase):
    def test_both_clients_have_the_same_methods(self) -> None:
        self.assertEqual(_methods(bantam.Client), _methods(bantam.AsyncClient))


def _methods(client: type) -> dict[str, list[str]]:
    found = inspect.getmembers(client, inspect.isfunction)
    return {
        name: [str(one).partition("->")[0] for one in inspect.signature(method).parameters.values()]
        for name, method in found
        if not name.startswith("_")
    }
