"""A running ``serve`` answers for ``predict``: the same results, and no model loaded."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn
from PIL import Image
from typer.testing import CliRunner

from dpfpl_client.cli.main import app
from dpfpl_client.models.loader import load_backbone
from dpfpl_client.use.predict import classify_files
from dpfpl_client.use.prompt import load_prompt
from dpfpl_client.use.serving import remote
from dpfpl_client.use.serving.app import classifier_app
from dpfpl_client.use.serving.remote import classify_served
from dpfpl_common.errors import ConfigError, DeploymentError
from dpfpl_common.ops.http import HttpGuard, open_listener
from dpfpl_common.ops.processes import free_port

TOKEN = "a-token-of-many-letters"


@pytest.fixture(scope="module")
def classifier(trained_once):
    return load_prompt(trained_once).classifier(load_backbone("embedded"))


@pytest.fixture(scope="module")
def address(classifier):
    listener = open_listener("127.0.0.1", 0)
    guarded = HttpGuard(classifier_app(classifier, 100_000), TOKEN)
    server = uvicorn.Server(uvicorn.Config(guarded, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def files(tmp_path):
    for name, colour in (("a.png", (200, 180, 190)), ("b.png", (20, 30, 10))):
        Image.new("RGB", (30, 20), colour).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "large.png").write_bytes(bytes(200_000))
    return [tmp_path / name for name in ("a.png", "b.png", "broken.png", "gone.png", "large.png")]


def test_the_answers_are_those_of_a_model_of_ones_own(classifier, address, files):
    own = list(classify_files(classifier, files[:2], 2))
    served = list(classify_served(address, files, 2, token=TOKEN))
    assert [result.path for result in served] == files
    for here, there in zip(own, served[:2], strict=True):
        assert there.prediction.classes == here.prediction.classes
        assert there.prediction.probabilities == pytest.approx(here.prediction.probabilities, abs=1e-5)
    assert [bool(result.error) for result in served] == [False, False, True, True, True]
    assert "cannot be used" in served[2].error
    assert served[3].error == "it does not exist"
    assert "larger than 100,000 bytes" in served[4].error


@pytest.mark.parametrize(
    ("instead", "code"),
    [
        ({"token": "another token of letters"}, "TOKEN_WRONG"),
        ({"question": "what is it?"}, "UNWANTED_QUESTION"),
        ({"address": f"http://127.0.0.1:{free_port()}"}, "NOT_SERVED"),
    ],
)
def test_what_concerns_no_single_image_is_an_error_with_its_code(address, files, instead, code):
    with pytest.raises(DeploymentError, match=code):
        list(classify_served(**{"address": address, "paths": files, "top": 2, "token": TOKEN, **instead}))


@pytest.mark.parametrize(
    ("statuses", "code"),
    [([503, 503, 200], None), ([503] * 9, "BUSY"), ([200], "NOT_SERVED"), ([404], "NOT_SERVED")],
)
def test_a_busy_one_is_asked_again_for_a_while_and_a_strange_one_is_named(monkeypatch, files, statuses, code):
    busy = {"code": "BUSY", "message": "Much to do.", "advice": "Again."}
    good = {"predictions": [{"name": "cat", "probability": 0.75}]}
    said = iter([(each, busy if each == 503 else good if code is None else ["?"]) for each in statuses])
    slept = []
    prompt = (200, {"max_bytes": 1000})
    monkeypatch.setattr(remote._Served, "_sent", lambda _, method, *__: prompt if method == "GET" else next(said))
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    if code is None:
        (result,) = classify_served("http://localhost:1", files[:1], 1)
        assert (result.prediction.classes, result.prediction.probabilities) == (("cat",), (0.75,))
        assert slept == [0.5, 1.0]
        return
    with pytest.raises(DeploymentError) as caught:
        list(classify_served("http://localhost:1", files[:1], 1))
    assert caught.value.code == code
    assert len(slept) == (len(remote.PAUSES) if code == "BUSY" else 0)


@contextlib.contextmanager
def raw_server(*answers):
    """Answers one connection after another with these bytes, without reading more than the first of what is sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):  # closed: not all were asked for
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def said(body, status="200 OK", more=""):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n{more}\r\n"
    return head.encode() + content


PROMPT = said({"max_bytes": 50_000_000})
CAT = said({"predictions": [{"name": "cat", "probability": 0.75}]})
BUSY = said({"code": "BUSY", "message": "8 images are being classified.", "advice": "Try again."}, "503 Busy")


def test_an_answer_before_the_image_was_sent_counts(tmp_path, monkeypatch):
    """``serve`` says that it is busy, or the file too large, and closes while it is still being sent to."""
    slept = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    photo = tmp_path / "large.png"
    photo.write_bytes(bytes(25_000_000))
    large = said({"code": "IMAGE_TOO_LARGE", "message": "The file is larger than 5 bytes."}, "413 Too large")
    with raw_server(PROMPT, BUSY, CAT) as address:
        (result,) = classify_served(address, [photo], 1)
    assert result.prediction.classes == ("cat",)
    assert slept == [0.5]
    with raw_server(PROMPT, large) as address:
        (result,) = classify_served(address, [photo], 1)
    assert result.error == "The file is larger than 5 bytes"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n",
        said(b"no json"),
        said(b"[" * 100_000),
        said(b"{", more="X: y\r\n"),
        said([]),
        said({}),
        said({"predictions": "abc"}),
        said({"predictions": [{"name": "x"}]}),
        said({"predictions": [{"name": 5, "probability": 0.5}]}),
        said(b'{"predictions": [{"name": "x", "probability": NaN}]}'),
        said({"code": 5, "message": 6}),
        said({"predictions": []}, "500 Error"),
        said(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    ],
)
def test_whatever_else_answers_is_named_and_nothing_is_believed(files, monkeypatch, answer):
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    answers = [answer] * (len(remote.PAUSES) + 1)
    with raw_server(PROMPT, *answers) as address, pytest.raises(DeploymentError) as caught:
        list(classify_served(address, files[:1], 1, token="secret-token-secret"))
    assert caught.value.code == "NOT_SERVED"


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8080", "ftp://h:1", "file:///etc/passwd", "http://", "http://127.0.0.1:abc",
     "http://127.0.0.1:99999", "http://[::1", "http://us er@h", "http://h\x1b[2J:1"],
)  # fmt: skip
def test_an_address_that_is_none_is_named(files, address):
    with pytest.raises(ConfigError, match="BAD_ADDRESS"):
        list(classify_served(address, files[:1], 1))


def test_a_file_that_cannot_be_read_does_not_stop_the_others(files, monkeypatch):
    reads = type(files[0]).read_bytes

    def read(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return reads(path)

    monkeypatch.setattr(type(files[0]), "read_bytes", read)
    with raw_server(PROMPT, CAT) as address:
        first, second = classify_served(address, files[:2], 5000, question="\ud800")
    assert first.error == "Permission denied"
    assert second.prediction.classes == ("cat",)


def test_the_command_needs_no_site_and_loads_no_model(address, files, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    arguments = ["predict", *map(str, files[:2]), "--served", address, "--token-file", str(token), "--json"]
    program = (
        "import sys\nfrom dpfpl_client.cli.main import app\n"
        f"sys.argv = ['dpfpl-client', *{arguments!r}]\n"
        "try: app()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [entry["image"] for entry in found] == [str(path) for path in files[:2]]
    assert all(0 < entry["probabilities"][0] <= 1 for entry in found)


@pytest.mark.parametrize("option", [["--alpha", "0"], ["--usual-mix", "0.5"], ["--experiment", "x"], ["--unfinished"]])
def test_another_prompt_than_the_served_one_cannot_be_asked_for(files, option):
    done = CliRunner().invoke(app, ["predict", str(files[0]), "--served", "http://127.0.0.1:1", *option])
    assert done.exception.code == "ANOTHER_PROMPT"
