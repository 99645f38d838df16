"""The breaks themselves are sound, and what runs them tells a caught one from a missed, a broken and an endless one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CODE = """
def clipped(value, bound):
    return min(value, bound)
"""
TESTS = """
import dpfpl_toy.clip

def test_a_large_value_is_cut():
    assert dpfpl_toy.clip.clipped(5.0, 2.0) == 2.0

def test_a_small_value_is_kept():
    assert dpfpl_toy.clip.clipped(1.0, 2.0) == 1.0
"""
PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutate
root, work = Path(sys.argv[2]), Path(sys.argv[3])
mutate.warm_up(("pytest", "hypothesis", "pytest_timeout"))
copies = mutate.made_copies(work, 2, root)
jobs = []
told = {}
for name, (new, test) in json.loads(sys.argv[4]).items():
    mutation = mutate.Mutation(name, "common/src/dpfpl_toy/clip.py", "min(value, bound)", new, (test,))
    jobs.append(mutate.Job((test,), mutation, 6.0 if "end" in name else 60.0))
jobs.append(mutate.Job(("tests/test_clip.py",)))
mutate.side_by_side(jobs, copies, lambda job, o: told.update({job.mutation.name if job.mutation else "none": vars(o)}))
left = {(copy / "common/src/dpfpl_toy/clip.py").read_text() == Path(root / "common/src/dpfpl_toy/clip.py").read_text()
        for copy in copies}
print(json.dumps([told, left == {True}]))
"""
CUT, KEPT = (f"tests/test_clip.py::test_a_{which}" for which in ("large_value_is_cut", "small_value_is_kept"))
BREAKS = {
    "caught": ("value", CUT),
    "missed by the test that looks elsewhere": ("value", KEPT),
    "an unknown name": ("minimum(value, bound)", CUT),
    "an import of nothing": ("__import__('no_such_module').min(value)", CUT),
    "no Python": ("min(value, bound", CUT),
    "no such test": ("value", "tests/test_clip.py::test_nothing"),
    "without end": ("[0 for _ in iter(int, 1)]", CUT),
}


def test_every_break_has_its_text_once_is_a_program_and_names_tests_that_exist():
    """So that a change of the code that moves a break's text is noticed with the change."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import mutate; print(len(mutate.MUTATIONS)); "
    program += "print('\\n'.join(mutate.problems(mutate.MUTATIONS, mutate.ROOT)))"
    told = subprocess.run([sys.executable, "-c", program, str(HERE)], capture_output=True, text=True, check=True)
    count, *problems = told.stdout.strip().splitlines()
    assert problems == []
    assert int(count) > 130


@pytest.mark.privacy
def test_only_a_test_that_ran_and_failed_catches_a_break(tmp_path):
    root, work = tmp_path / "root", tmp_path / "work"
    for path, text in (("common/src/dpfpl_toy/clip.py", CODE), ("tests/test_clip.py", TESTS)):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    (root / "common/src/dpfpl_toy/__init__.py").touch()
    (root / "pyproject.toml").write_text("")
    work.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(HERE), str(root), str(work), json.dumps(BREAKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told, restored = json.loads(done.stdout.splitlines()[-1])
    assert {name: outcome["word"] for name, outcome in told.items()} == {
        "none": "passed",
        "caught": "failed",
        "missed by the test that looks elsewhere": "passed",
        "an unknown name": "broken",
        "an import of nothing": "broken",
        "no Python": "broken",
        "no such test": "broken",
        "without end": "timed out",
    }
    assert told["caught"]["test"].endswith("test_a_large_value_is_cut")
    assert "AssertionError" in told["caught"]["why"]
    assert restored, "the copies are as before"
