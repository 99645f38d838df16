"""The classifier over HTTP: right answers, and clear refusals of whatever is not a reasonable image."""

import asyncio
import dataclasses
import io
import json
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.prompt import SitePrompt, load_prompt
from dpfpl_client.use.serving import app as app_module
from dpfpl_client.use.serving.app import MAX_WAITING, classifier_app, serve_app
from dpfpl_common.errors import DeploymentError
from dpfpl_common.experiment import Experiment, ModelSettings, PrivacySettings, PromptSettings, TaskSettings

LIMIT = 100_000
PNG = {"content-type": "image/png"}


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def image():
    return Image.new("RGB", (30, 20), (200, 180, 190))


@pytest.fixture(scope="module")
def classifier(trained_once):
    return load_prompt(trained_once).classifier(load_backbone("embedded"))


def call(classifier, method, path, *, limit=LIMIT, about=None, **arguments):
    async def go():
        transport = httpx.ASGITransport(classifier_app(classifier, limit, about=about))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(go())


def refused(classifier, content, query="", headers=PNG):
    """Status, code and message of the answer to what is not predicted, which has advice."""
    answer = call(classifier, "POST", f"/v1/predict{query}", content=content, headers=headers)
    problem = answer.json()
    assert problem["advice"]
    return answer.status_code, problem["code"], problem["message"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_answer_is_the_classifiers_own(classifier, image, kind):
    body = encoded(image, kind)
    answer = call(classifier, "POST", "/v1/predict?top=2", content=body, headers={"content-type": "image/x"})
    (expected,) = classifier.classify([Image.open(io.BytesIO(body)).convert("RGB")], 2)
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert tuple(entry["name"] for entry in found) == expected.classes
    assert [entry["probability"] for entry in found] == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "image/png", 400, "NO_IMAGE"),
        (b"not an image", "image/png", 422, "CORRUPT_IMAGE"),
        (encoded(Image.effect_noise((120, 120), 50))[:3000], "image/png", 422, "CORRUPT_IMAGE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 422, "CORRUPT_IMAGE"),
        (b"x" * (LIMIT + 1), "image/png", 413, "IMAGE_TOO_LARGE"),
        (b"{}", "application/json", 415, "WRONG_TYPE"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "WRONG_TYPE"),
        (b"x", "text/plain", 415, "WRONG_TYPE"),
        (b"x", "multipart/form-data; boundary=b", 415, "WRONG_TYPE"),
    ],
)
def test_what_is_no_reasonable_image_is_refused_with_a_code_and_advice(classifier, content, kind, status, code):
    *found, message = refused(classifier, content, headers={"content-type": kind})
    assert found == [status, code]
    assert message


def test_a_decompression_bomb_is_refused_before_it_unpacks(classifier):
    """140 MB of pixels in some tens of kilobytes, and more than the limit if they said so themselves."""
    bomb = encoded(Image.new("1", (13_000, 11_000)))
    assert len(bomb) < LIMIT
    started = time.monotonic()
    status, code, message = refused(classifier, bomb)
    assert (status, code, "pixels" in message) == (422, "CORRUPT_IMAGE", True)
    assert time.monotonic() - started < 5


def test_a_body_without_a_declared_length_is_cut_at_the_limit(classifier):
    sent = []

    async def endless():
        for _ in range(10_000):
            sent.append(1)
            yield b"x" * 10_000

    assert refused(classifier, endless())[:2] == (413, "IMAGE_TOO_LARGE")
    assert len(sent) < 20


def test_a_slow_sender_is_let_go(classifier, monkeypatch):
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.2)

    async def slow():
        yield b"x"
        await asyncio.sleep(30)
        yield b"x"

    assert refused(classifier, slow())[:2] == (408, "TOO_SLOW")


def test_a_crowd_is_told_to_come_back(classifier, image):
    async def go():
        release, entered = threading.Event(), threading.Event()

        class Slow:
            classes = classifier.classes

            def asked(self, question):
                return question

            def classify(self, images, top, question):
                entered.set()
                release.wait(10)
                return classifier.classify(images, top, question)

        transport = httpx.ASGITransport(classifier_app(Slow(), LIMIT))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = [
                asyncio.create_task(client.post("/v1/predict", content=encoded(image), headers=PNG))
                for _ in range(MAX_WAITING)
            ]
            await asyncio.to_thread(entered.wait, 10)
            await asyncio.sleep(0.1)
            turned_away = await client.post("/v1/predict", content=encoded(image), headers=PNG)
            release.set()
            return turned_away, await asyncio.gather(*first)

    turned_away, served = asyncio.run(go())
    assert (turned_away.status_code, turned_away.json()["code"]) == (503, "BUSY")
    assert [answer.status_code for answer in served] == [200] * MAX_WAITING


@pytest.mark.parametrize("top", ["0", "-1", "many", "1001"])
def test_a_wrong_parameter_is_named(classifier, image, top):
    status, code, message = refused(classifier, encoded(image), f"?top={top}")
    assert (status, code, message[:5]) == (422, "WRONG_PARAMETER", "top: ")


def test_the_interface_describes_itself_and_loads_nothing_from_elsewhere(classifier):
    described = call(classifier, "GET", "/openapi.json").json()
    operation = described["paths"]["/v1/predict"]["post"]
    assert "image/png" in operation["requestBody"]["content"]
    assert {"200", "400", "408", "413", "415", "422", "503"} <= set(operation["responses"])
    assert set(described["paths"]) == {"/v1/predict", "/v1/prompt", "/health"}
    assert call(classifier, "GET", "/docs").status_code == 404
    for path in app_module.STATIC:
        page = call(classifier, "GET", path)
        assert page.status_code == 200
        # A namespace is a name; nothing is loaded from there.
        assert "http://" not in page.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "https://" not in page.text
    served = {"classes": ["bright", "dark"], "task": "classify", "question": "", "max_bytes": LIMIT, "scores": []}
    assert call(classifier, "GET", "/v1/prompt").json() == served | {"about": None}
    names = {"site": "north", "model": "embedded", "experiment": "pilot", "version": "1f", "learned": "today"}
    about = names | {"finished": True, "usual_mix": 0.5}
    assert call(classifier, "GET", "/v1/prompt", about=about).json()["about"] == about


def test_a_question_to_a_prompt_that_tells_classes_apart_is_refused_before_the_image_is_read(classifier):
    async def endless():
        raise AssertionError("the image was read")
        yield b""

    assert refused(classifier, endless(), "?question=what+is+it")[:2] == (422, "UNWANTED_QUESTION")


def in_words(kind, question=""):
    backbone = load_backbone("embedded-vlm")
    experiment = Experiment(
        name="asked",
        classes=(),
        sites=("north",),
        model=ModelSettings(width=backbone.width),
        prompt=PromptSettings(num_context=4, rank=2, init_text="look"),
        privacy=PrivacySettings(mechanism="per_step", noise_multiplier=1.0),
        task=TaskSettings(kind=kind, question=question, max_answer_tokens=4),
    )
    zeros = np.zeros(experiment.context_shape)
    return SitePrompt(experiment, zeros.astype(np.float32), zeros, 1).classifier(backbone, None)


def test_a_prompt_that_answers_questions_is_asked_one_with_every_image(image):
    asked = in_words("vqa")
    assert call(asked, "GET", "/v1/prompt").json() == {
        "classes": [], "task": "vqa", "question": "", "max_bytes": LIMIT, "scores": [], "about": None,
    }  # fmt: skip
    for query in ("", "?question=", "?question=%20%0A"):
        assert refused(asked, encoded(image), query)[:2] == (422, "NO_QUESTION")
    for question, words in (("x" * 1001, "longer than 1000"), ("a%00b", "character U+0000"), ("a%E2%80%AEb", "U+202E")):
        status, code, message = refused(asked, encoded(image), f"?question={question}")
        assert (status, code, words in message) == (422, "BAD_QUESTION", True)
    assert asked.asked("\u0645\u06cc\u200c\u0634\u0648\u062f \U0001f469\u200d\U0001f52c?").count("\u200d") == 1
    assert asked.asked("what <image> is </s> it?")  # plain characters to this tokenizer
    found = {}
    for question in ("what colour is it?", "which digit is written?"):
        answer = call(asked, "POST", "/v1/predict", params={"question": question}, content=encoded(image), headers=PNG)
        assert answer.status_code == 200, answer.text
        ((expected,), (probability,)) = dataclasses.astuple(next(asked.classify([image], question=question)))
        (found[question],) = answer.json()["predictions"]
        assert found[question] == {"name": expected, "probability": pytest.approx(probability, abs=1e-5)}
    assert len({entry["name"] for entry in found.values()}) == 2


def test_a_question_that_spells_a_control_token_is_a_bad_question(image, monkeypatch):
    asked = in_words("vqa")
    tokenizer = asked._backbone.tokenizer
    tokenizer.add_tokens(["beyond"])  # behind the embedding's last row, and one token whatever is asked for
    for question in ("what+beyond+is+it", "beyond"):
        status, code, message = refused(asked, encoded(image), f"?question={question}")
        assert (status, code, "beyond" in message) == (422, "BAD_QUESTION", True)
    given = []
    embed = asked._backbone.language.embed
    monkeypatch.setattr(asked._backbone.language, "embed", lambda ids: given.append(ids) or embed(ids))
    answer = call(asked, "POST", "/v1/predict?question=what%3Cimage%3E%3C/s%3E", content=encoded(image), headers=PNG)
    assert answer.status_code == 200
    what, image_token, end = tokenizer.convert_tokens_to_ids(["what", "<image>", "</s>"])
    (ids,) = [each.flatten().tolist() for each in given if what in each]
    assert not {image_token, end} & set(ids)


@pytest.mark.parametrize("own", ["", "what colour is it?"])
def test_a_prompt_for_captions_may_be_asked_and_has_a_question_of_its_own(image, own):
    captions = in_words("caption", own)
    assert call(captions, "GET", "/v1/prompt").json()["question"] == own
    plain = call(captions, "POST", "/v1/predict", content=encoded(image), headers=PNG).json()["predictions"][0]
    same = call(captions, "POST", "/v1/predict", params={"question": own}, content=encoded(image), headers=PNG)
    assert same.json()["predictions"][0] == plain
    other = call(captions, "POST", "/v1/predict?question=read+the+digit.", content=encoded(image), headers=PNG)
    assert other.json()["predictions"][0]["name"] != plain["name"]


def test_a_port_in_use_is_said(classifier):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(DeploymentError, match="PORT_IN_USE"):
        serve_app(classifier_app(classifier, LIMIT), "127.0.0.1", taken.getsockname()[1], None, print)


@pytest.mark.slow
def test_serve_as_a_new_user_types_it(trained_once, image):
    """The real command: it says where it listens, answers this machine, and ends on Ctrl-C."""
    command = [sys.executable, "-m", "dpfpl_client", "serve", "--site", str(trained_once / "site.toml"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Open http://127.0.0.1:"), process.stderr.read()
            address = line.split()[1]
            with httpx.Client(base_url=address) as client:
                answer = client.post("/v1/predict", content=encoded(image), headers=PNG)
                assert answer.json()["predictions"][0]["name"] in ("bright", "dark")
                assert "content-security-policy" in answer.headers
                assert "server" not in answer.headers
                rebound = client.post("/v1/predict", content=encoded(image), headers={**PNG, "host": "evil.example"})
                assert (rebound.status_code, rebound.json()["code"]) == (421, "WRONG_HOST")
        finally:
            process.send_signal(2)
            out, err = process.communicate(timeout=20)
    assert json.dumps(out + err).count("Traceback") == 0
