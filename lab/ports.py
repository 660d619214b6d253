"""Free ports on loopback that stay free until their process starts."""

import socket
from types import TracebackType
from typing import Self


class Ports:
    """Holds ports by bound sockets that do not listen, so that nobody else is given them by the kernel.

    The sockets have SO_REUSEADDR, as every server here has: Linux then lets the real owner bind beside them.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def take(self) -> int:
        """Choose a free port and hold it."""
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        self._held.append(holder)
        port: int = holder.getsockname()[1]
        return port

    def release(self) -> None:
        """Let go of all ports: their processes have bound them by now."""
        for holder in self._held:
            holder.close()
        self._held.clear()
