"""A server that writes whatever a test says on its connections: answers that no web server
gives.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Send = Callable[[bytes], None]


@contextmanager
def raw_server(answer: Callable[[Send], None]) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and the first line of each request that it has got.

    `answer` is called with what sends bytes, once a connection; a client that goes away ends it.
    """
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        asked.append(connection.recv(65536).decode().splitlines()[0])
                        answer(connection.sendall)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png", asked
        listening.shutdown(socket.SHUT_RDWR)
