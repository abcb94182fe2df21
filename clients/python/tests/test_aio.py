"""The asyncio client, against the real daemon."""

from __future__ import annotations

import asyncio
import unittest

import grpc.aio

import bantam

from daemon import NARROW, PATIENCE, Daemon

PROMPT = "Once upon a time"


class Asyncio(unittest.IsolatedAsyncioTestCase):
    daemon: Daemon

    @classmethod
    def setUpClass(cls) -> None:
        cls.daemon = Daemon("--schedule-slots", "2", "--schedule-tokens-in-flight", "1").__enter__()
        cls.addClassCleanup(cls.daemon.__exit__, None, None, None)

    async def asyncSetUp(self) -> None:
        self.client = bantam.aio.connect(self.daemon.socket)
        self.addAsyncCleanup(self.client.close)
        narrow = grpc.aio.insecure_channel(f"unix:{self.daemon.socket}", options=NARROW)
        self.narrow = bantam.AsyncClient(narrow)
        self.addAsyncCleanup(self.narrow.close)

    async def test_both_clients_get_the_same_text(self) -> None:
        generation = self.client.generate(PROMPT, max_new_tokens=8, temperature=0, timeout=PATIENCE)
        texts = [token.text async for token in generation]
        self.assertEqual(await generation.text(), "".join(texts))
        self.assertIsNotNone(generation.finished)
        with self.daemon.connect() as client:
            same = client.generate(PROMPT, max_new_tokens=8, temperature=0, timeout=PATIENCE)
            self.assertEqual(same.text(), "".join(texts))

    async def test_streams_run_side_by_side(self) -> None:
        generations = [self.client.generate(PROMPT, max_new_tokens=8, seed=7, timeout=PATIENCE) for _ in range(6)]
        texts = await asyncio.gather(*(generation.text() for generation in generations))
        self.assertEqual(len(set(texts)), 1)

    async def test_every_call_has_its_answer(self) -> None:
        model = await self.client.load(timeout=PATIENCE)
        self.assertIn(model.id, [one.id for one in await self.client.models()])
        self.assertTrue((await self.client.plan()).lines)
        hidden = (await self.client.inspect()).hidden
        self.assertTrue(await self.client.set_budget())
        ids = await self.client.tokenize(PROMPT, special=False)
        self.assertEqual(await self.client.detokenize(ids), PROMPT)
        self.assertEqual(len((await self.client.score(ids)).log_probabilities), len(ids) - 1)
        self.assertEqual([len(one) for one in await self.client.embed([PROMPT])], [hidden])
        reply = await self.client.chat("Hello", max_new_tokens=4, timeout=PATIENCE).reply()
        tokenized = await self.client.tokenize_chat(["Hello", reply])
        self.assertIn("Hello", tokenized.rendered)
        async with self.client.watch(timeout=PATIENCE) as changes:
            self.assertTrue((await changes.__anext__()).HasField("snapshot"))
        await self.client.unload(model.id, timeout=PATIENCE)

    async def test_leaving_frees_the_place(self) -> None:
        async for _ in self.begin():
            break
        async with self.begin() as generation:
            await generation.__anext__()
        closed = self.begin()
        await closed.__anext__()
        closed.close()
        # Two places: a stream that nobody reads and nobody ended would keep its own for longer than this.
        both = [self.client.generate(PROMPT, max_new_tokens=2, timeout=20) for _ in range(2)]
        self.assertTrue(all(await asyncio.gather(*(generation.text() for generation in both))))
        with self.assertRaises(bantam.Cancelled):
            await closed.text()

    def begin(self) -> bantam.AsyncGeneration:
        return self.narrow.generate(PROMPT, max_new_tokens=400, ignore_eos=True)

    async def test_refusals_are_the_same_errors(self) -> None:
        with self.assertRaises(bantam.InvalidArgument) as caught:
            await self.client.generate(PROMPT, top_p=2).text()
        self.assertEqual(caught.exception.field, "options.top_p")
        with self.assertRaises(bantam.NotFound):
            await self.client.tokenize(PROMPT, model="absent")
        with self.assertRaises(bantam.DeadlineExceeded):
            await self.client.generate(PROMPT, timeout=0).text()
