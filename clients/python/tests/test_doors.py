"""The ways into the real daemon: the usual socket, tokens, TLS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import bantam

from daemon import PATIENCE, Daemon, DaemonTest


class UsualSocket(DaemonTest):
    def test_connect_finds_it_by_the_runtime_folder_or_by_name(self) -> None:
        for variables in ({"XDG_RUNTIME_DIR": str(self.daemon.folder)}, {"BANTAM_SOCKET": str(self.daemon.socket)}):
            with mock.patch.dict(os.environ, variables), bantam.connect() as client:
                client.models(timeout=PATIENCE)


class Tcp(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="bantam-")
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.tokens = self.folder / "tokens"
        self.tokens.touch(mode=0o600)
        self.tokens.write_text("tests: correct-horse-battery-staple-0123456789\n")
        self.address = f"127.0.0.1:{_free_port()}"
        self.flags = ["--tcp-listen", self.address, "--tcp-tokens", str(self.tokens)]

    def test_a_token_lets_in_and_another_does_not(self) -> None:
        with Daemon(*self.flags):
            with bantam.connect(self.address, token="correct-horse-battery-staple-0123456789") as client:
                client.models(timeout=PATIENCE)
            for token in (None, "wrong-horse"):
                with bantam.connect(self.address, token=token) as client, self.assertRaises(bantam.NotAllowed):
                    client.models(timeout=PATIENCE)

    @unittest.skipUnless(shutil.which("openssl"), "openssl is not installed: no certificates to test TLS with")
    def test_tls_knows_the_daemon_by_its_authority(self) -> None:
        ca, certificate, key = self.certificates()
        with Daemon(*self.flags, "--tls-certificate", str(certificate), "--tls-key", str(key)):
            address = self.address.replace("127.0.0.1", "localhost")
            token = "correct-horse-battery-staple-0123456789"
            with bantam.connect(address, token=token, tls=bantam.Tls(ca=ca)) as client:
                client.models(timeout=PATIENCE)
            with bantam.connect(address, token=token, tls=bantam.Tls()) as client:
                with self.assertRaises(bantam.Unavailable):
                    client.models(timeout=PATIENCE)

    def certificates(self) -> tuple[Path, Path, Path]:
        """An authority, a certificate by it, and the certificate's key."""
        names = [self.folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key", "server.csr", "names")]
        ca, ca_key, certificate, key, request, extensions = map(str, names)
        names[-1].write_text("subjectAltName=DNS:localhost\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        _openssl("req", "-x509", *new, "-subj", "/CN=authority", "-keyout", ca_key, "-out", ca)
        _openssl("req", *new, "-subj", "/CN=localhost", "-keyout", key, "-out", request)
        signer = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2"]
        _openssl("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-out", certificate)
        return Path(ca), Path(certificate), Path(key)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
