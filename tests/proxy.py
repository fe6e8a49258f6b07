"""A proxy that counts round trips between a client and a server."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class Proxy:
    """Forward traffic between a client and a server, and count the round trips."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._target = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        #: How often a client spoke after its server had, over all connections.
        self.round_trips = 0

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            # Whose turn it is. Once the client starts to send, it is the server's.
            turn = {"client": True}
            for source, sink, is_client in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass_on, args=(source, sink, turn, is_client), daemon=True
                ).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, turn: dict[str, bool], is_client: bool
    ) -> None:
        try:
            while data := source.recv(65536):
                if is_client and turn["client"]:
                    self.round_trips += 1
                turn["client"] = not is_client
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()
