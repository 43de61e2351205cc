"""A headless Chromium that is steered over its DevTools protocol: open a page, click, read the page, take a picture."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S, WAIT_S = 60.0, 60.0


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a browser of its own.

    Attributes:
        requests: addresses of all requests of the page.
        errors: what the page has reported: uncaught errors, refused scripts.
    """

    def __init__(self, width: int = 1200, height: int = 900):
        self._profile = tempfile.TemporaryDirectory()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        options += [f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            [find_browser(), *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._socket = connect(self._find_page(), max_size=2**28)
        self._number = 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _find_page(self) -> str:
        from urllib.request import urlopen

        file, end = Path(self._profile.name) / "DevToolsActivePort", time.monotonic() + START_S
        while time.monotonic() < end:
            if file.exists() and (lines := file.read_text().splitlines()):
                with urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                    pages = [found for found in json.load(answer) if found["type"] == "page"]
                if pages:
                    return pages[0]["webSocketDebuggerUrl"]
            time.sleep(0.1)
        raise TimeoutError("the browser did not start")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            self._note(message)
            if message.get("id") == self._number:
                return message.get("result", {})

    def _note(self, message: dict[str, Any]) -> None:
        found = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(found["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return result.get("result", {}).get("value")

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + WAIT_S
        while not self.read(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} did not become true; errors: {self.errors}")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click the middle of the first element of a selector, with the mouse."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.wait(place)
        self.read(f"{place}.scrollIntoView({{block: 'center'}})")
        time.sleep(0.2)
        box = self.read(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def take_picture(self, file: Path) -> None:
        data = self._call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        for _ in range(20):
            try:
                self._profile.cleanup()
                return
            except OSError:  # a child of the browser is still writing
                time.sleep(0.2)
