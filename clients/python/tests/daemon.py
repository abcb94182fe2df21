"""A daemon of our own for the tests, in a folder of its own: nothing of the user's is read or written."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from types import TracebackType

import bantam

#: Much longer than anything takes: who waits so long has found a mistake.
PATIENCE = 60.0

#: A connection takes only a few messages that nobody read: an unread stream stands still instead of running to its end.
NARROW: list[tuple[str, str | int]] = [
    ("grpc.default_authority", "localhost"),
    ("grpc.http2.lookahead_bytes", 64),
    ("grpc.http2.bdp_probe", 0),
]


class Daemon:
    """Runs while the `with` lasts. BANTAM_BIN names the program: `bantamd`, or `bantam`, which is told to serve."""

    def __init__(self, *flags: str) -> None:
        program = os.environ.get("BANTAM_BIN")
        if not program:
            raise unittest.SkipTest("no daemon to test: set BANTAM_BIN to bantamd, or run `cargo xtask python`")
        self._scratch = tempfile.TemporaryDirectory(prefix="bantam-")
        self.folder = Path(self._scratch.name)
        self.socket = self.folder / "bantam.sock"
        verb = ["serve"] if Path(program).stem == "bantam" else []
        self._command = [program, *verb, "--log-level", "warn", *flags]

    def __enter__(self) -> Daemon:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("BANTAM_", "XDG_"))}
        for name in ("HOME", "XDG_RUNTIME_DIR"):
            variables[name] = str(self.folder)
        self._process = subprocess.Popen(self._command, env=variables, stdin=subprocess.DEVNULL)
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._scratch.cleanup()

    def connect(self) -> bantam.Client:
        return bantam.connect(self.socket)

    def _wait(self) -> None:
        """Until its socket takes connections."""
        deadline = time.monotonic() + PATIENCE
        while not self._listens():
            if self._process.poll() is not None:
                raise AssertionError(f"{self._command} ended with {self._process.returncode} before it listened")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self._command} does not listen at {self.socket} after {PATIENCE} s")
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as door:
            return door.connect_ex(str(self.socket)) == 0


class DaemonTest(unittest.TestCase):
    """Tests that share a daemon, each with a connection of its own."""

    flags: tuple[str, ...] = ()
    daemon: Daemon

    @classmethod
    def setUpClass(cls) -> None:
        cls.daemon = Daemon(*cls.flags).__enter__()
        cls.addClassCleanup(cls.daemon.__exit__, None, None, None)

    def setUp(self) -> None:
        self.client = self.daemon.connect()
        self.addCleanup(self.client.close)
