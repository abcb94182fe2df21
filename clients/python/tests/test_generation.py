"""Text in, text out, with the carried model in the real daemon."""

from __future__ import annotations

import itertools
import unittest

import grpc

import bantam
from bantam.requests import Message
from bantam.v1 import generation_pb2

from daemon import NARROW, PATIENCE, DaemonTest

PROMPT = "Once upon a time"


class Generations(DaemonTest):
    def test_tokens_are_streamed_and_their_texts_are_the_text(self) -> None:
        generation = self.client.generate(PROMPT, max_new_tokens=8, temperature=0, ignore_eos=True, timeout=PATIENCE)
        texts = [token.text for token in generation]
        self.assertEqual(len(texts), 8)
        self.assertEqual(generation.text(), "".join(texts))
        assert generation.started is not None and generation.finished is not None
        self.assertEqual(generation.finished.reason, generation_pb2.FINISH_REASON_LENGTH)
        self.assertEqual(generation.finished.usage.new_tokens, 8)
        self.assertEqual(generation.finished.usage.prompt_tokens, generation.started.prompt_tokens)

    def test_a_seed_repeats_a_text_whether_of_a_text_or_of_its_tokens(self) -> None:
        first = self.client.generate(PROMPT, max_new_tokens=8, temperature=1, timeout=PATIENCE)
        text = first.text()
        assert first.started is not None
        for prompt in (PROMPT, self.client.tokenize(PROMPT)):
            again = self.client.generate(
                prompt, max_new_tokens=8, temperature=1, seed=first.started.seed, timeout=PATIENCE
            )
            self.assertEqual(again.text(), text)

    def test_the_next_turn_reads_only_what_is_new(self) -> None:
        messages: list[Message] = ["Tell me what Bantam is, of files and models, and what I need to have for it."]
        first = self.client.chat(messages, max_new_tokens=8, temperature=0, timeout=PATIENCE).text()
        messages += [{"role": "assistant", "content": first}, "And then?"]
        found = []
        for off in (False, True):
            reply = self.client.chat(
                messages, max_new_tokens=8, temperature=0, prefix_cache={"off": off}, timeout=PATIENCE
            )
            text = reply.text()
            assert reply.finished is not None
            found.append((text, reply.finished.usage.cached_tokens))
        (warm, known), (cold, none) = found
        self.assertEqual(warm, cold)
        self.assertGreater(known, 10)
        self.assertEqual(none, 0)

    def test_log_probabilities_and_alternatives(self) -> None:
        generation = self.client.generate(
            PROMPT, max_new_tokens=2, temperature=0, repetition_penalty=1, alternatives=3, timeout=PATIENCE
        )
        for token in generation:
            self.assertEqual(len(token.alternatives), 3)
            self.assertEqual(token.alternatives[0].id, token.id)
            self.assertEqual(token.alternatives[0].log_probability, token.log_probability)

    def test_a_stop_string_ends_the_text_before_it(self) -> None:
        whole = self.client.generate(PROMPT, max_new_tokens=16, temperature=0, timeout=PATIENCE).text()
        stop = whole[5:8]
        cut = self.client.generate(PROMPT, max_new_tokens=16, temperature=0, stop=stop, timeout=PATIENCE)
        self.assertEqual(cut.text(), whole[: whole.index(stop)])
        assert cut.finished is not None
        self.assertEqual(cut.finished.reason, generation_pb2.FINISH_REASON_STOP)

    def test_a_conversation_goes_on_with_the_reply(self) -> None:
        chat = self.client.chat("Hello", max_new_tokens=8, temperature=0, timeout=PATIENCE)
        for token in itertools.islice(chat, 1):
            self.assertEqual(token.begins.channel, generation_pb2.CHANNEL_FINAL)
            break
        reply = self.client.chat("Hello", max_new_tokens=8, temperature=0, timeout=PATIENCE).reply()
        self.assertEqual(reply.role, "assistant")
        messages: list[Message] = ["Hello", reply, {"role": "user", "content": "And then?"}]
        self.assertTrue(self.client.chat(messages, max_new_tokens=4, timeout=PATIENCE).text())
        tokenized = self.client.tokenize_chat(messages)
        self.assertIn("And then?", tokenized.rendered)
        self.assertIn(reply.content, tokenized.rendered)

    def test_a_plain_generation_has_no_reply(self) -> None:
        with self.assertRaisesRegex(ValueError, "expected a chat"):
            self.client.generate(PROMPT, max_new_tokens=1, timeout=PATIENCE).reply()

    def test_tokens_and_back(self) -> None:
        ids = self.client.tokenize(PROMPT, special=False)
        self.assertEqual(self.client.detokenize(ids), PROMPT)

    def test_scores(self) -> None:
        ids = self.client.tokenize(PROMPT)
        score = self.client.score(ids, timeout=PATIENCE)
        self.assertEqual(list(score.ids), ids)
        self.assertEqual(len(score.log_probabilities), len(ids) - 1)
        self.assertAlmostEqual(sum(score.log_probabilities), score.total_log_probability, places=3)
        self.assertEqual(len(self.client.score(PROMPT, first_scored=2).log_probabilities), len(ids) - 2)

    def test_embeddings(self) -> None:
        mean = self.client.embed([PROMPT, [1, 2, 3]], timeout=PATIENCE)
        self.assertEqual(len(mean), 2)
        self.assertEqual(len(mean[0]), self.client.inspect().hidden)
        (last,) = self.client.embed([PROMPT], pooling="last", normalize=True, timeout=PATIENCE)
        self.assertAlmostEqual(sum(value * value for value in last), 1, places=4)
        self.assertNotEqual(mean[0], last)


class Refusals(DaemonTest):
    def test_a_wrong_field_is_named(self) -> None:
        with self.assertRaises(bantam.InvalidArgument) as caught:
            self.client.generate(PROMPT, top_p=2).text()
        self.assertEqual(caught.exception.field, "options.top_p")
        self.assertIn("2", str(caught.exception))

    def test_a_model_that_is_not_there_is_named(self) -> None:
        with self.assertRaises(bantam.NotFound) as caught:
            self.client.generate(PROMPT, model="absent").text()
        self.assertEqual(caught.exception.details.resource, "absent")

    def test_what_is_not_yet_says_so(self) -> None:
        request = bantam.requests.generate("", PROMPT, 1, {})
        request.options.speculation.tokens = 2
        with self.assertRaises(bantam.NotYet):
            bantam.Generation(self.client.generation_service.Generate(request)).text()

    def test_a_deadline_ends_a_call(self) -> None:
        # Whoever's timer is first, the daemon's or the client's.
        for seconds in [0, 0.0002, 0.001] * 10:
            with self.assertRaises(bantam.DeadlineExceeded):
                self.client.generate(PROMPT, timeout=seconds).text()


class Ends(DaemonTest):
    """One place: whoever does not give it back holds up the next."""

    flags = ("--schedule-slots", "1", "--schedule-tokens-in-flight", "1")

    def setUp(self) -> None:
        super().setUp()
        self.narrow = bantam.Client(grpc.insecure_channel(f"unix:{self.daemon.socket}", options=NARROW))
        self.addCleanup(self.narrow.close)

    def begin(self) -> bantam.Generation:
        return self.narrow.generate(PROMPT, max_new_tokens=400, ignore_eos=True)

    def check_free(self) -> None:
        # A stream that nobody reads and nobody ended would keep its place for longer than this.
        self.assertTrue(self.client.generate(PROMPT, max_new_tokens=2, timeout=20).text())

    def test_an_unread_stream_keeps_its_place(self) -> None:
        # Or the tests below would show nothing.
        with self.begin() as generation:
            next(generation)
            with self.assertRaises(bantam.DeadlineExceeded):
                self.client.generate(PROMPT, max_new_tokens=2, timeout=1).text()

    def test_leaving_the_loop_frees_the_place(self) -> None:
        generation = self.begin()
        for _ in generation:
            break
        self.check_free()
        with self.assertRaises(bantam.Cancelled):
            generation.text()

    def test_leaving_the_with_frees_the_place(self) -> None:
        with self.begin() as generation:
            next(generation)
        self.check_free()

    def test_losing_a_generation_frees_the_place(self) -> None:
        next(self.begin())
        self.check_free()

    def test_closing_frees_the_place(self) -> None:
        generation = self.begin()
        next(generation)
        generation.close()
        self.check_free()
        self.assertEqual(len(generation.tokens), 1)


if __name__ == "__main__":
    unittest.main()
