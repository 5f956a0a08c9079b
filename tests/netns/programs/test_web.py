"""http.server, requests, curl, Twisted: unmodified, across two NATs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.netns.programs.ground import Ground, need, need_program


def test_http_server_is_fetched_from_by_requests_and_by_curl(
    ground: Ground, tmp_path: Path
) -> None:
    need("requests")
    curl = need_program("curl")
    content = os.urandom(2_000_000)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "file").write_bytes(content)
    # It asks for the name of its address, and the lab has no name servers to wait for.
    quick = {"RES_OPTIONS": "attempts:1 timeout:1"}
    argv = ["-m", "http.server", "8000", "-d", f"{tmp_path}/site"]
    server = ground.python(ground.a, *argv, **quick)
    host, port = server.wait_line(r"Serving HTTP on (\S+) port (\d+)").groups()
    assert host == ground.public_address(ground.a)
    url = f"http://{host}:{port}/file"
    got = ground.told(ground.b, "web_get.py", url)
    assert got["status"] == "200 SimpleHTTP"
    assert got["hash"] == hashlib.sha256(content).hexdigest()
    ground.other.run([curl, "-sS", "-o", f"{tmp_path}/got", url])
    assert (tmp_path / "got").read_bytes() == content
    for peer in (ground.b, ground.other):
        server.wait_line(rf"^{peer.observed_address} - - .*GET /file", stream="stderr")


def test_twisted_serves_and_connects(ground: Ground) -> None:
    need("twisted")
    server, address = ground.served(ground.a, "twisted_lines.py", "serve")
    assert address[0] == ground.public_address(ground.a)
    for host in (ground.b, ground.other):
        use = ground.told(host, "twisted_lines.py", "use", *address)
        assert use["answers"].split()[1] == "1001"
        for _ in range(3):
            own, peer = server.wait_line(r"^own (\S+) peer (\S+)").groups()
            assert own == ":".join(address)
            assert peer == host.observed_address
