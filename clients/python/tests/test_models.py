"""Which models live in memory, asked of the real daemon."""

from __future__ import annotations

import bantam
from bantam.v1 import model_pb2, model_service_pb2

from daemon import PATIENCE, DaemonTest


class Models(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.forget)

    def forget(self) -> None:
        try:
            self.client.unload(timeout=PATIENCE)
        except bantam.NotFound:
            pass

    def test_what_is_planned_is_loaded_and_leaves(self) -> None:
        plan = self.client.plan(context=256, slots=2, precision="exact")
        self.assertTrue(plan.fits)
        steps: list[model_service_pb2.LoadProgress] = []
        model = self.client.load(
            context=256, slots=2, precision="exact", pin=True, ttl=60, progress=steps.append, timeout=PATIENCE
        )
        self.assertEqual(model.state, model_pb2.MODEL_STATE_RESIDENT)
        self.assertEqual((model.options.context, model.options.slots, model.options.pin), (256, 2, True))
        self.assertEqual(model.options.ttl.ToTimedelta().total_seconds(), 60)
        self.assertEqual(list(model.bytes), list(plan.bytes))
        self.assertIn(model.id, [one.id for one in self.client.models()])
        freed = self.client.unload(model.id, timeout=PATIENCE)
        self.assertEqual(list(freed.freed), list(plan.bytes))
        self.assertEqual(freed.model.state, model_pb2.MODEL_STATE_ABSENT)
        with self.assertRaises(bantam.NotFound):
            self.client.unload(timeout=PATIENCE)

    def test_other_options_need_an_unload_first(self) -> None:
        self.client.load(context=256, timeout=PATIENCE)
        with self.assertRaisesRegex(bantam.FailedPrecondition, "context"):
            self.client.load(context=128, timeout=PATIENCE)

    def test_a_checkpoint_is_described(self) -> None:
        found = self.client.inspect(tensors=True)
        self.assertGreater(found.parameters, 3_000_000)
        self.assertTrue(found.tensors)

    def test_the_budget_says_what_is_missing(self) -> None:
        (before,) = self.client.set_budget()
        self.addCleanup(self.client.set_budget, ram=before.budget_bytes)
        (after,) = self.client.set_budget(ram=1 << 20)
        self.assertEqual((after.device, after.budget_bytes), ("ram", 1 << 20))
        self.assertFalse(self.client.plan().fits)
        with self.assertRaises(bantam.ResourceExhausted) as caught:
            self.client.load(timeout=PATIENCE)
        self.assertTrue(caught.exception.missing)

    def test_changes_are_watched(self) -> None:
        with self.client.watch(timeout=PATIENCE) as changes:
            first = next(changes)
            self.assertEqual(first.WhichOneof("event"), "snapshot")
            self.assertEqual([one.device for one in first.snapshot.devices], ["ram"])
            model = self.client.load(timeout=PATIENCE)
            loaded = next(change.loaded for change in changes if change.HasField("loaded"))
            self.assertEqual(loaded.model.id, model.id)

    def test_figures_come_when_asked_for(self) -> None:
        self.client.load(slots=3, timeout=PATIENCE)
        for change in self.client.watch(figures_every=0.1, timeout=PATIENCE):
            if change.HasField("figures"):
                self.assertEqual([model.slots for model in change.figures.models], [3])
                break
