import socket
import subprocess
import sys

import pytest

# An address that is reserved for documentation: nothing answers there.
ELSEWHERE = "192.0.2.1"


def test_this_process_reaches_nothing() -> None:
    with pytest.raises(OSError, match="network is blocked"):
        socket.create_connection((ELSEWHERE, 80), timeout=1)
    with pytest.raises(OSError, match="network is blocked"):
        socket.getaddrinfo("example.org", 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(OSError, match="network is blocked"):
        sender.sendto(b"x", (ELSEWHERE, 53))


def test_child_processes_reach_nothing() -> None:
    code = f"import urllib.request; urllib.request.urlopen('http://{ELSEWHERE}/', timeout=1)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "network is blocked" in child.stderr


def test_loopback_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
