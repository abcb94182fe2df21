"""Training beside serving, asked of the real daemon."""

from __future__ import annotations

import json
from pathlib import Path

import bantam
from bantam.v1 import job_service_pb2

from daemon import PATIENCE, DaemonTest

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens" / "models"


class Jobs(DaemonTest):
    def setUp(self) -> None:
        super().setUp()
        rows = [{"input_ids": [5 + (row * 31 + at * 7) % 90 for at in range(16)]} for row in range(6)]
        (self.daemon.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.settings: dict[str, object] = {
            "model_name_or_path": str(GOLDENS / "llama-tied"),
            "dataset_path": "rows.jsonl",
            "dataset_type": "tokenized",
            "per_device_train_batch_size": 1,
            "logging_steps": 1,
        }

    def over(self, job: job_service_pb2.Job) -> job_service_pb2.Job:
        last = job
        for response in self.client.watch_job(job, timeout=PATIENCE):
            if response.HasField("job"):
                last = response.job
        return last

    def test_a_run_is_watched_to_its_end(self) -> None:
        job = self.client.train(self.settings, folder=self.daemon.folder, output_dir="out", max_steps=3)
        last = self.over(job)
        self.assertEqual((last.state, last.error), (job_service_pb2.JOB_STATE_DONE, ""))
        self.assertEqual((last.progress.done, last.progress.total), (3, 3))
        self.assertTrue((self.daemon.folder / "out" / "adapter_model.safetensors").exists())
        self.assertIn(job.id, [one.id for one in self.client.jobs()])

    def test_a_cancelled_run_saves(self) -> None:
        settings = json.dumps({**self.settings, "output_dir": "cancelled", "save_strategy": "no"})
        job = self.client.train(settings, folder=self.daemon.folder, max_steps=100000)
        for response in self.client.watch_job(job, timeout=PATIENCE):
            if response.progress.done > 0:
                break
        self.client.cancel_job(job)
        self.assertEqual(self.over(job).state, job_service_pb2.JOB_STATE_CANCELLED)
        kept = list((self.daemon.folder / "cancelled").glob("checkpoint-*/optimizer.safetensors"))
        self.assertEqual(len(kept), 1)

    def test_what_is_wrong_is_said(self) -> None:
        with self.assertRaisesRegex(bantam.InvalidArgument, "did you mean learning_rate"):
            self.client.train(self.settings, folder=self.daemon.folder, output_dir="out", learning_rat=1)
        with self.assertRaises(bantam.NotFound):
            self.client.cancel_job("job-99")
