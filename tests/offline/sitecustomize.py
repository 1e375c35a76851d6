"""Refuses every network connection but loopback, in any Python that has this folder on PYTHONPATH.

Jupyter talks to its kernels over loopback, so that stays open; everything else is a test that would download something.
"""

import ipaddress
import socket
from typing import Any

REFUSAL = "The network is blocked in tests; this one tried to reach"


def _is_local(host: object) -> bool:
    """Whether a host, as given to connect or getaddrinfo, is this machine."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(name: str) -> None:
    """Put a check of the address before a method of socket.socket."""
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise OSError(f"{REFUSAL} {address[0]}.")
        return original(self, *arguments)

    setattr(socket.socket, name, guarded)


def install() -> None:
    """Block the network in this process, once."""
    if getattr(socket, "offline_for_tests", False):
        return
    for name in ("connect", "connect_ex", "sendto"):
        _guard(name)
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if not _is_local(host):
            raise OSError(f"{REFUSAL} {host}.")
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo
    socket.offline_for_tests = True  # type: ignore[attr-defined]


install()
