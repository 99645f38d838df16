"""DR10: images just under the limit at ``serve``, ten at once: the peak of memory is bounded, and stated."""

import asyncio
import concurrent.futures
import http.client
import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from dpfpl_client.use.serving import app as serving

MAX_BYTES = 20_000_000
STATED_MB = 11 * serving.SERVED_PIXELS / 1e6 + serving.MAX_WAITING * MAX_BYTES / 1e6 + 80
"""What SERVED_PIXELS promises, and 80 MB for the web server."""

SERVER = """
import sys
from types import SimpleNamespace
import uvicorn
from dpfpl_client.use.prompt import Prediction
from dpfpl_client.use.serving.app import classifier_app
from dpfpl_common.ops.http import PAGE_LIMITS, open_listener

class Classifier:
    classes, task = ("a", "b"), SimpleNamespace(kind="classify", question="")
    def asked(self, question):
        return ""
    def classify(self, images, top, question):
        for image in images:
            image.resize((224, 224))
            yield Prediction(["a"], [1.0])

listener = open_listener("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(classifier_app(Classifier(), int(sys.argv[1])), **PAGE_LIMITS)).run(sockets=[listener])
"""


def body(mode: str, kind: str) -> bytes:
    edge = int(serving.SERVED_PIXELS**0.5)
    made = io.BytesIO()
    image = Image.new(mode, (edge, edge))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    image.save(made, kind, **({"exif": exif} if kind in ("PNG", "JPEG") else {}))
    assert made.tell() < MAX_BYTES
    return made.getvalue()


def kilobytes(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("L", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG")])
def test_DR10_ten_large_images_at_once(mode: str, kind: str) -> None:
    content = body(mode, kind)
    padded = content + b"\0" * (MAX_BYTES - len(content))  # bytes behind an image are ignored
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(MAX_BYTES)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None

    def ask(small: bool = False) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"content-type": f"image/{kind.lower()}", "host": "127.0.0.1"}
        try:
            connection.request("POST", "/v1/predict", TINY if small else padded, headers)
            return connection.getresponse().status
        except OSError:
            return 503  # refused while we were still sending
        finally:
            connection.close()

    try:
        port = int(server.stdout.readline())
        while ask(small=True) != 200:
            pass
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
        before = kilobytes(server.pid, "VmRSS")
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: ask(), range(10)))
        peak = (kilobytes(server.pid, "VmHWM") - before) / 1024
        assert ask(small=True) == 200
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    print(f"DR10 {mode}: answers {sorted(answers)}, {peak:.0f} MB more at the peak, {STATED_MB:.0f} MB stated")
    assert set(answers) <= {200, 503}
    assert answers.count(200) >= 1
    assert peak < STATED_MB


def test_DR10_who_goes_away_does_not_let_a_second_image_be_unpacked() -> None:
    running, most, go_on = 0, 0, threading.Event()

    def classify(*_: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go_on.wait(10)
        running -= 1

    class Upload:
        headers: ClassVar = {"content-type": "image/png"}

        async def stream(self):  # type: ignore[no-untyped-def]
            yield b"an image"

    async def calls() -> None:
        worker = serving._OneAtATime(classify)  # type: ignore[arg-type]
        first, second = (asyncio.ensure_future(worker(Upload(), 100, 1, "")) for _ in "ab")  # type: ignore[arg-type]
        while not running:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.2)
        go_on.set()
        await second

    asyncio.run(calls())
    assert most == 1


TINY = (lambda made: (Image.new("RGB", (8, 8)).save(made, "PNG"), made.getvalue())[1])(io.BytesIO())
