"""The page of ``dpfpl-client serve`` in a real browser: an image in, classes out; what is none is refused in words."""

import pytest
from chromium import served
from PIL import Image

from dpfpl_client.use.prompt import Prediction
from dpfpl_client.use.serving.app import STATIC, classifier_app
from dpfpl_common.experiment import TaskSettings
from dpfpl_common.ops.http import HttpGuard

pytestmark = pytest.mark.slow


class Classifier:
    """Stands for a prompt: what it answers is tested elsewhere."""

    classes = ("pneumonia", "healthy", "<b>effusion</b>")
    task = TaskSettings()

    def asked(self, question):
        return question

    def classify(self, images, top, question):
        return iter([Prediction(self.classes[:top], (0.81, 0.17, 0.02)[:top]) for _ in images])


class Answerer(Classifier):
    """Stands for a prompt that answers in words: it repeats the question."""

    classes = ()

    def __init__(self, kind="vqa"):
        self.task = TaskSettings(kind)

    def classify(self, images, top, question):
        return iter([Prediction((f"<i>you asked: {question}</i>",), (0.5,)) for _ in images])


def serving(classifier):
    return served(HttpGuard(classifier_app(classifier, 50_000), None, STATIC))


@pytest.fixture
def address():
    with serving(Classifier()) as address:
        yield address


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
    assert tab.value("getComputedStyle(document.querySelector('#asking')).display") == "none"
    picture(tab, f"serve-{device}")
    assert tab.problems == []


@pytest.mark.parametrize(("device", "width"), [("desktop", 800), ("phone", 390)])
def test_a_question_is_asked_about_an_image(browser, tmp_path, device, width):
    Image.effect_noise((240, 160), 60).save(tmp_path / "chest.png")
    with serving(Answerer()) as address:
        tab = browser.tab(width, 800, mobile=device == "phone")
        tab.open(address)
        tab.wait("!document.querySelector('#asking').hidden")
        assert tab.value("document.title") == "Ask about an image"
        tab.choose_file("#file", tmp_path / "chest.png")
        tab.wait("document.querySelector('#result').textContent.includes('Write a question')")
        tab.value("document.querySelector('#question').value = 'is it broken & where?'")
        tab.value("document.querySelector('#asking button').click()")
        tab.wait("document.querySelectorAll('#result tr').length === 1")
        expected = "<i>you asked: is it broken & where?</i>50.0 %"
        assert tab.value("document.querySelector('#result tr').textContent") == expected
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("document.querySelector('#classes').textContent") == "Largest file: 0.05 MB."
        assert tab.problems == []


def test_a_caption_needs_no_question(browser, tmp_path):
    Image.effect_noise((240, 160), 60).save(tmp_path / "chest.png")
    with serving(Answerer("caption")) as address:
        tab = browser.tab()
        tab.open(address)
        tab.wait("!document.querySelector('#asking').hidden")
        tab.choose_file("#file", tmp_path / "chest.png")
        tab.wait("document.querySelectorAll('#result tr').length === 1")
        assert tab.value("document.title") == "Describe an image"
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
