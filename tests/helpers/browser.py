"""A page in headless Chromium, spoken to over a pipe: what it says, and a picture of it."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

# Text, placeholders and what stands for pictures, also inside of shadow roots, where TensorBoard
# has most of its own.
TEXT = """
(() => {
  const found = [];
  const walk = (node) => {
    const text = node.nodeType === Node.TEXT_NODE ? node.textContent.trim() : '';
    if (text) found.push(text);
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return;
    if (node.nodeName === 'IMG' && node.complete && node.naturalWidth)
      found.push(`img ${node.naturalWidth}`);
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return found.join('\\n');
})()
"""


def program() -> str | None:
    return next((name for name in NAMES if shutil.which(name)), None)


class Page:
    """One page of a Chromium whose pipes are file numbers 3 (to it) and 4 (from it)."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._from, self._waiting, self._number = to, answers, b"", 0
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]

    def open(self, url: str) -> None:
        self._call(
            "Page.navigate", url="about:blank"
        )  # another fragment of the same page would not load it anew
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of `script`, or of what it promises."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        return answer["result"].get("value")

    def emulate(self, size: tuple[int, int], *, phone: bool = False, dark: bool = False) -> None:
        """A screen of this width and height in CSS pixels; a phone has two pixels for each."""
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 2 if phone else 1}
        self._call("Emulation.setDeviceMetricsOverride", mobile=phone, **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def choose_file(self, selector: str, file: Path) -> None:
        """Give `file` to an input of the page, as a person does who chooses it."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def press(self, key: str, code: int) -> None:
        """A key by its name and its Windows code."""
        for kind in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def text(self, until: Callable[[str], bool], seconds: float = 60) -> str:
        """What the page says as soon as `until` holds of it, or after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            said = str(self.evaluate(TEXT))
            if until(said) or time.monotonic() > end:
                return said
            time.sleep(0.25)

    def picture(self, file: Path) -> None:
        file.write_bytes(
            base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> bytes:
        while b"\0" not in self._waiting:
            more = os.read(self._from, 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._waiting += more
        message, _, self._waiting = self._waiting.partition(b"\0")
        return message


@contextmanager
def page(
    profile: Path, size: tuple[int, int] = (1400, 1000), flags: Sequence[str] = ()
) -> Iterator[Page]:
    """`profile`: a folder for what the browser keeps; `flags`: more of its options. It asks nobody
    but who is on this machine.
    """
    read, to = os.pipe()
    answers, write = os.pipe()
    command = [
        str(program()),
        *(
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ),
        *("--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
        *(
            f"--window-size={size[0]},{size[1]}",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ),
        *flags,
    ]

    def pipes() -> None:
        kept = os.dup(read), os.dup(write)  # 3 and 4 may be taken, by one of the two as well
        os.dup2(kept[0], 3)
        os.dup2(kept[1], 4)

    browser = subprocess.Popen(
        command,
        close_fds=False,
        preexec_fn=pipes,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    try:
        yield Page(to, answers)
    finally:
        browser.kill()
        browser.wait()
        os.close(to)
        os.close(answers)
