"""Lines about image features: not too many, with the time left, and told on by whoever waits."""

import pytest

from dpfpl_client.agent.progress import ImageProgress, duration, last_progress
from dpfpl_client.node.launch import start_agent, wait_for_agent
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import DeploymentError


def lines(seconds_an_image, total, already=0):
    said, now = [], [100.0]
    progress = ImageProgress(said.append, lambda: now[0])
    for done in range(1, total + 1):
        now[0] += seconds_an_image
        progress(done + already, total + already)
    return said


def test_quick_work_gets_one_line():
    assert lines(0.001, 500) == ["image features 500/500"]


def test_long_work_gets_a_line_every_ten_seconds_with_the_time_left():
    said = lines(0.5, 100)
    assert said[0] == "image features 3/100, about 49 s left"
    assert said[1] == "image features 23/100, about 39 s left"
    assert len(said) == 6
    assert said[-1] == "image features 100/100"
    assert lines(3.0, 5000)[0] == "image features 2/5000, about 5 h left"


def test_a_second_set_is_reckoned_from_its_own_beginning():
    said, now = [], [0.0]
    progress = ImageProgress(said.append, lambda: now[0])
    for pace in (100.0, 1.0):
        for done in range(1, 4):
            now[0] += pace
            progress(done, 3)
    assert said == [
        "image features 2/3, about 2 min left",
        "image features 3/3",
        "image features 2/3, about 1 s left",
        "image features 3/3",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "1 s"), (1.2, "2 s"), (90.0, "90 s"), (91.0, "2 min"), (5400.0, "90 min"), (5401.0, "2 h")],
)
def test_durations_are_rounded_up(seconds, text):
    assert duration(seconds) == text


class Agent:
    """A process whose log grows each time that somebody looks whether it still lives."""

    log_file, name = "agent.log", "agent of a"

    def __init__(self, *pieces, at_the_end=None):
        self._pieces, self._log, self._at_the_end = list(pieces), "", at_the_end

    def log_text(self):
        return self._log

    def log_tail(self):
        return self._log

    def poll(self):
        if not self._pieces:
            return 2
        self._log += self._pieces.pop(0)
        if not self._pieces and self._at_the_end:
            self._at_the_end()
        return None


def site(folder):
    (folder / "site.toml").write_text('name = "a"\n[data]\nsource = "digits"\n')
    return load_site(folder / "site.toml")


def test_whoever_waits_for_the_agent_tells_its_progress_and_no_other_line(tmp_path):
    """Ready is the file that the agent makes; no line of its log is taken for it."""
    settings, said = site(tmp_path), []
    settings.state_folder.mkdir()
    agent = Agent(
        "warning: x.png cannot be read\n",
        "The agent of a listens on unix:run/agent.sock\n",
        "image features 10/40, about 3 min left\n",
        "image features of secret.png\n",
        "image features 20/40, about 2 min left\n",
        "",
        "image features 40/40\n",
        at_the_end=settings.ready_file.touch,
    )
    wait_for_agent(agent, settings, said.append)
    assert said == [
        "image features 10/40, about 3 min left",
        "image features 20/40, about 2 min left",
        "image features 40/40",
    ]


def test_what_an_earlier_agent_left_does_not_say_that_the_new_one_is_ready(tmp_path):
    class Group:
        def start(self, name, command, **options):
            return settings.ready_file.exists()

    settings = site(tmp_path)
    settings.state_folder.mkdir()
    settings.ready_file.touch()
    assert start_agent(tmp_path / "site.toml", settings, Group()) is False


def test_an_agent_that_ends_before_it_is_ready_is_told_with_its_log(tmp_path):
    agent = Agent("image features 1/40\n", "error: the state is locked\n")
    with pytest.raises(DeploymentError, match=r"ended with status 2(?s:.*)the state is locked"):
        wait_for_agent(agent, site(tmp_path))


def test_only_whole_lines_count():
    assert last_progress("image features 1/2\nimage features 2/2, abo") == "image features 1/2"
    assert last_progress("nothing") == ""
