"""The page of ``dpfpl-client serve`` in a real browser: an image in, classes out; what is none is refused in words."""

import threading

import pytest
import uvicorn
from PIL import Image

from dpfpl_client.prompt import Prediction
from dpfpl_client.serving.app import STATIC, classifier_app
from dpfpl_common.http_guard import HttpGuard

pytestmark = pytest.mark.slow


class Classifier:
    """Stands for a prompt: what it answers is tested elsewhere."""

    classes = ("pneumonia", "healthy", "<b>effusion</b>")

    def classify(self, images, top):
        return iter([Prediction(self.classes[:top], (0.81, 0.17, 0.02)[:top]) for _ in images])


@pytest.fixture
def address():
    app = HttpGuard(classifier_app(Classifier(), 50_000), None, STATIC)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not (server.started and server.servers):
        pass
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


@pytest.mark.parametrize(("device", "width"), [("desktop", 800), ("phone", 390)])
def test_an_image_is_classified(browser, address, tmp_path, picture, device, width):
    Image.effect_noise((240, 160), 60).save(tmp_path / "chest.png")
    tab = browser.tab(width, 800, mobile=device == "phone")
    tab.media("screen", "light")
    tab.open(address)
    tab.wait("document.querySelector('#classes').textContent.includes('pneumonia')")
    tab.choose_file("#file", tmp_path / "chest.png")
    tab.wait("document.querySelectorAll('#result tr').length === 3")
    assert tab.value("document.querySelector('#result tr').textContent") == "pneumonia81.0 %"
    assert tab.value("document.querySelector('#result b')") is None  # a class name is text
    assert tab.value("document.documentElement.scrollWidth") <= width
    picture(tab, f"serve-{device}")
    assert tab.problems == []


@pytest.mark.parametrize(
    ("content", "said"), [(b"no image", "cannot be used"), (b"x" * 60_000, "larger than 50,000 bytes")]
)
def test_what_is_no_image_is_refused_in_words(browser, address, tmp_path, content, said):
    (tmp_path / "scan.png").write_bytes(content)
    tab = browser.tab()
    tab.open(address)
    tab.choose_file("#file", tmp_path / "scan.png")
    tab.wait("document.querySelector('#result .bad') !== null")
    assert said in tab.value("document.querySelector('#result').textContent")
