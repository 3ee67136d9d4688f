"""A headless Chromium, driven over the DevTools protocol by a pipe (no port, no library): pages, JavaScript, keys, pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.support.containers import eventually

T = TypeVar("T")

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0

FLAGS = (
    "--remote-debugging-pipe",
    "--headless",
    # It shows pages of the tests alone; as root, and unpacked into a folder, it has no sandbox that works.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


# It reads commands at descriptor 3 and answers at 4.
_AT_3_AND_4 = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(AssertionError):
    """The browser said no, or nothing."""


class Browser:
    """A context manager, which ends it. `resolve` maps names to addresses, for this browser alone."""

    def __init__(self, program: Path, *, resolve: Sequence[str] = ()) -> None:
        self._folder = tempfile.mkdtemp(prefix="af-chromium-", dir="/tmp")
        to_read, to_write = os.pipe(), os.pipe()
        argv = [str(program), *FLAGS, f"--user-data-dir={self._folder}"]
        if resolve:
            argv.append("--host-resolver-rules=" + ",".join(f"MAP {name} 127.0.0.1" for name in resolve))
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _AT_3_AND_4, str(to_read[0]), str(to_write[1]), *argv, "about:blank"],
            pass_fds=(to_read[0], to_write[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self._folder},
        )
        os.close(to_read[0])
        os.close(to_write[1])
        self._commands = os.fdopen(to_read[1], "wb", buffering=0)
        self._answers = os.fdopen(to_write[0], "rb")
        self._number = 0
        self._waiting: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True, name="chromium")
        self._reader.start()

    def __enter__(self) -> Browser:
        try:
            self.call("Browser.getVersion", timeout_s=START_TIMEOUT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._commands.close()
        self._reader.join(20)
        self._answers.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._answers.fileno(), 1 << 16):
            *whole, rest = (rest + piece).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    with self._changed:
                        self._waiting[message["id"]] = message
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        session: str = "",
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        number = self._number
        command = {
            "id": number,
            "method": method,
            "params": params or {},
            **({"sessionId": session} if session else {}),
        }
        try:
            self._commands.write(json.dumps(command).encode() + b"\0")
        except BrokenPipeError as error:
            raise BrowserError("the browser has ended") from error
        with self._changed:
            self._changed.wait_for(lambda: number in self._waiting or self._ended, timeout_s)
            answer = self._waiting.pop(number, None)
        if answer is None:
            raise BrowserError(f"no answer to {method}" + (": the browser has ended" if self._ended else ""))
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url: str, *, width: int = 1400, height: int = 900) -> Tab:
        """A tab of its own for this address, as if it had been typed."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = Tab(self, session, target)
        tab.resize(width, height)
        tab.go(url)
        return tab


class Tab:
    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        return self._browser.call(method, params, session=self._session)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def go(self, url: str) -> None:
        """As if it had been typed. Again, while the browser gives up: it does when an interface of the machine comes or goes
        (ERR_NETWORK_CHANGED), which is what containers that are started and removed are to it.
        """

        def there() -> bool:
            problem = self.call("Page.navigate", {"url": url}).get("errorText")
            assert problem is None, f"{url}: {problem}"
            return True

        eventually(there, timeout_s=30.0)

    def run(self, code: str) -> Any:
        """What this expression is worth; promises are awaited. An exception in it is a BrowserError."""
        result = self.call("Runtime.evaluate", {"expression": code, "awaitPromise": True, "returnByValue": True})
        if "exceptionDetails" in result:
            raise BrowserError(f"{code}: {result['exceptionDetails'].get('exception', result['exceptionDetails'])}")
        return result["result"].get("value")

    def wait(self, code: str, wanted: Callable[[Any], object] = bool, *, timeout_s: float = 45.0) -> Any:
        """The value of the expression as soon as it is as wanted."""

        def look() -> Any:
            value = self.run(code)
            assert wanted(value), f"{code} is {value!r}; the page says: {self.text()}"
            return [value]

        return eventually(look, timeout_s=timeout_s)[0]

    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.body.innerText"))

    def allow_clipboard(self, origin: str) -> None:
        """Reading it too, which a person would be asked for."""
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        self._browser.call("Browser.grantPermissions", {"permissions": permissions, "origin": origin})

    def press(self, key: str, *, text: str = "") -> None:
        """A key, as from a keyboard."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        event = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0), **({"text": text} if text else {})}
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", **event})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first such element."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        at = {"x": where[0], "y": where[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", {"type": "mousePressed", **at})
        self.call("Input.dispatchMouseEvent", {"type": "mouseReleased", **at})

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", {"features": features})

    def picture(self) -> bytes:
        """A PNG of what is to be seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", {"format": "png"})["data"])
