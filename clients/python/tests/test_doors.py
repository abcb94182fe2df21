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

    @unittest.skipUnless(shutil.which("openssl"), "openssl is not installed: no certificates to test TLS with")
    def test_a_certificate_lets_in_without_a_token(self) -> None:
        ca, certificate, key = self.certificates()
        ours, our_key = self.certificate("client", "extendedKeyUsage=clientAuth")
        files = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(ca)]
        address = self.address.replace("127.0.0.1", "localhost")
        with Daemon("--tcp-listen", self.address, *files):
            with bantam.connect(address, tls=bantam.Tls(ca=ca, certificate=ours, key=our_key)) as client:
                client.models(timeout=PATIENCE)
            with bantam.connect(address, tls=bantam.Tls(ca=ca)) as client:
                with self.assertRaises((bantam.Unavailable, bantam.NotAllowed)):
                    client.models(timeout=PATIENCE)

    def certificates(self) -> tuple[Path, Path, Path]:
        """An authority, a certificate by it, and the certificate's key."""
        ca, ca_key = self.folder / "ca.pem", self.folder / "ca.key"
        _openssl("req", "-x509", *_NEW, "-subj", "/CN=authority", "-keyout", str(ca_key), "-out", str(ca))
        return (ca, *self.certificate("localhost", "subjectAltName=DNS:localhost"))

    def certificate(self, name: str, extension: str) -> tuple[Path, Path]:
        """A certificate by the authority, and its key."""
        certificate, key, request, extensions = (
            self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr", "extensions")
        )
        extensions.write_text(f"{extension}\n")
        _openssl("req", *_NEW, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))
        signer = ["-CA", str(self.folder / "ca.pem"), "-CAkey", str(self.folder / "ca.key"), "-CAcreateserial"]
        signed = ["-in", str(request), *signer, "-days", "2", "-extfile", str(extensions), "-out", str(certificate)]
        _openssl("x509", "-req", *signed)
        return certificate, key


#: A key that is made with a request.
_NEW = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
