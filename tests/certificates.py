"""Certificates for tests, made by the openssl command when they are needed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {common}
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = CA:false
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass
class Certificates:
    """Paths of an authority's certificate, and of keys with certificates that it has signed."""

    directory: Path

    @property
    def authority(self) -> Path:
        """What a client has to trust."""
        return self.directory / "ca.pem"

    def of(self, common: str, names: str) -> Path:
        """Make a key and a certificate in one file; ``names`` as in subjectAltName."""
        key, certificate = self._make(common, names, "leaf")
        both = self.directory / f"{common}.both.pem"
        both.write_text(key.read_text() + certificate.read_text())
        return both

    def _make(self, common: str, names: str, kind: str) -> tuple[Path, Path]:
        config = self.directory / f"{common}.cnf"
        config.write_text(_CONFIG.format(common=common, names=names))
        key, certificate = self.directory / f"{common}.key", self.directory / f"{common}.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-config", str(config)]
        command += ["-extensions", kind, "-keyout", str(key), "-out", str(certificate)]
        if kind == "leaf":
            command += ["-CA", str(self.authority), "-CAkey", str(self.directory / "ca.key")]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return key, certificate


def make_authority(directory: Path) -> Certificates:
    """Make an authority whose files are in ``directory``."""
    made = Certificates(directory)
    made._make("ca", "DNS:none", "ca")
    return made
