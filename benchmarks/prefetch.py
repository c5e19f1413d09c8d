"""Images behind a slow server, read one after the other and fetched eight at a time ahead of their
reader.

    python benchmarks/prefetch.py --images DIR [--count 64] [--delay 0.05]

A server on this machine, in a process of its own, waits `--delay` seconds before each answer. The
line that is printed holds the images a second of both ways, their ratio, and those of a second
pass, which reads the cache alone.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

IN_FLIGHT = 8


class SlowHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    delay = 0.0

    def do_GET(self) -> None:
        time.sleep(self.delay)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def serve(folder: Path, delay: float, port: Any) -> None:
    SlowHandler.delay = delay
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(SlowHandler, directory=str(folder)))
    port.put(running.server_port)
    running.serve_forever()


def main() -> None:
    import torch
    import urllib3

    from maskrcnn_lit.runs.provenance import package_commit
    from maskrcnn_lit.storage.cache import Cache, Prefetch
    from maskrcnn_lit.storage.sources import Remote
    from maskrcnn_lit.training.devices import device_name

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.05)
    arguments = parser.parse_args()
    names = sorted(path.name for path in arguments.images.glob("*.jpg"))[: arguments.count]
    port: Any = multiprocessing.Queue()
    server = multiprocessing.Process(
        target=serve, args=(arguments.images, arguments.delay, port), daemon=True
    )
    server.start()
    url = f"http://127.0.0.1:{port.get()}"
    with tempfile.TemporaryDirectory() as folder:
        Remote(url, Cache(Path(folder, "warm"), 1)).read(
            names[0]
        )  # what is imported and connected once
        sequential = rate(Remote(url, Cache(Path(folder, "one"), 1)), names)
        remote = Remote(url, Cache(Path(folder, "ahead"), 1))
        ahead = Prefetch(remote.fill, IN_FLIGHT)
        start = time.perf_counter()
        ahead.submit(names)
        rate(remote, names)
        in_flight = len(names) / (time.perf_counter() - start)
        ahead.close()
        second = rate(remote, names)
    server.terminate()
    report = {
        "benchmark": "prefetch",
        "device": device_name(torch.device("cpu")),
        "versions": {"urllib3": urllib3.__version__, "python": platform.python_version()},
        "commit": package_commit(),
        "images": len(names),
        "delay": arguments.delay,
        "in_flight": IN_FLIGHT,
        "images_per_second": {
            "sequential": round(sequential, 1),
            "in_flight": round(in_flight, 1),
            "second_pass": round(second, 1),
        },
        "ratio": round(in_flight / sequential, 2),
    }
    print(json.dumps(report))


def rate(remote: Any, names: list[str]) -> float:
    """Images a second, read in turn."""
    start = time.perf_counter()
    for name in names:
        remote.read(name)
    return len(names) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
