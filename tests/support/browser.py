"""Drive a headless Chromium through its DevTools protocol."""

import asyncio
import contextlib
import shutil
import subprocess

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """A page in the browser."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0

    async def call(self, method, **parameters):
        """Call a method of the protocol and return its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=60)
            if answer.get("id") == self._number:
                return answer["result"]

    async def value(self, expression):
        """Evaluate an expression of JavaScript."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression):
        """Wait until an expression is true."""
        async with asyncio.timeout(60):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def press(self, key, code):
        """Press a key that has no text."""
        for kind in ("rawKeyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code
            )

    async def drag(self, start, end):
        """Press the mouse at a point, move it to another, and release it."""
        for kind, (x, y) in (
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            await self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )


@contextlib.asynccontextmanager
async def opened(url, profile, width=1000, height=900):
    """Open a page; ``profile`` is an empty folder."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    flags += ["--remote-allow-origins=*", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        [str(CHROMIUM), *flags, f"--window-size={width},{height}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        chosen = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (chosen.is_file() and chosen.read_text().strip()):
                await asyncio.sleep(0.05)
        port = chosen.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                (page,) = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(page["webSocketDebuggerUrl"]) as socket:
                tab = Tab(socket)
                await tab.call("Page.navigate", url=url)
                await tab.until(f"location.href === {url!r} && document.readyState === 'complete'")
                yield tab
    finally:
        process.terminate()
        process.wait(20)
