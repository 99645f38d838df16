"""A running ``serve`` answers for ``predict``: the same results, and no model loaded."""

import json
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
    assert "larger than" in served[4].error


def test_what_concerns_no_single_image_is_an_error_with_its_code(address, files):
    with pytest.raises(DeploymentError) as caught:
        list(classify_served(address, files, 2, token="another token of letters"))
    assert caught.value.code == "TOKEN_WRONG"
    with pytest.raises(DeploymentError) as caught:
        list(classify_served(address, files, 2, question="what is it?", token=TOKEN))
    assert caught.value.code == "UNWANTED_QUESTION"
    with pytest.raises(DeploymentError) as caught:
        list(classify_served(f"http://127.0.0.1:{free_port()}", files, 2))
    assert caught.value.code == "NOT_SERVED"
    with pytest.raises(ConfigError) as caught:
        list(classify_served("file:///etc/passwd", files, 2))
    assert caught.value.code == "BAD_ADDRESS"


@pytest.mark.parametrize(
    ("statuses", "code"),
    [([503, 503, 200], None), ([503] * 9, "BUSY"), ([200], "NOT_SERVED"), ([404], "NOT_SERVED")],
)
def test_a_busy_one_is_asked_again_for_a_while_and_a_strange_one_is_named(monkeypatch, files, statuses, code):
    busy = {"code": "BUSY", "message": "Much to do.", "advice": "Again."}
    good = {"predictions": [{"name": "cat", "probability": 0.75}]}
    said = iter([(each, busy if each == 503 else good if code is None else ["?"]) for each in statuses])
    slept = []
    monkeypatch.setattr(remote, "_sent", lambda *_: next(said))
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
