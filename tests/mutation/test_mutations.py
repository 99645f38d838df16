"""The breaks themselves are sound, and what runs them tells a caught one from a missed, a broken and an endless one."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ANCHOR = runpy.run_path(str(HERE / "anchor.py"))
CODE = """
def clipped(value, bound):
    return min(value, bound)
"""
TESTS = """
import dpfpl_toy.runs.clip

def test_a_large_value_is_cut():
    assert dpfpl_toy.runs.clip.clipped(5.0, 2.0) == 2.0

def test_a_small_value_is_kept():
    assert dpfpl_toy.runs.clip.clipped(1.0, 2.0) == 1.0
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
    mutation = mutate.Mutation(name, "dpfpl_toy.runs.clip:clipped", "min(value, bound)", new, (test,))
    jobs.append(mutate.Job((test,), mutation, 6.0 if "end" in name else 60.0))
jobs.append(mutate.Job(("tests/test_clip.py",)))
mutate.side_by_side(jobs, copies, lambda job, o: told.update({job.mutation.name if job.mutation else "none": vars(o)}))
clip = "common/src/dpfpl_toy/runs/clip.py"
left = {(copy / clip).read_text() == (root / clip).read_text() for copy in copies}
print(json.dumps([told, left == {True}]))
"""
CUT, KEPT = (f"tests/test_clip.py::test_a_{which}" for which in ("large_value_is_cut", "small_value_is_kept"))
BREAKS = {
    "caught": ("value", CUT),
    "missed by the test that looks elsewhere": ("value", KEPT),
    "an unknown name": ("minimum(value, bound)", CUT),
    "an import of nothing": ("__import__('no_such_module').min(value)", CUT),
    "no such test": ("value", "tests/test_clip.py::test_nothing"),
    "without end": ("[0 for _ in iter(int, 1)]", CUT),
}


FOUND = {
    "an expression, however it is written": ("min(value,bound)", "value", "return value"),
    "what a placeholder stands for": ("return min(_1, _2)", "return max(_2, _1)", "return max(bound, value)"),
    "any arguments": ("min(...)", "0", "return 0"),
    "any further arguments": ("min(value, ...)", "0", "return 0"),
    "the whole piece": ("min(...)", "2 * _0", "return 2 * min(value, bound)"),
    "a statement before it": ("return _1", "value += 1\n_0", "value += 1\n    return min(value, bound)"),
}
NOT_FOUND = {
    "no such module": (
        "dpfpl_toy.runs.cut:clipped",
        "min(...)",
        "dpfpl_toy.runs.cut; clipped is in common/src/dpfpl_toy/runs/clip.py",
    ),
    "no such name": ("dpfpl_toy.runs.clip:cut", "min(...)", "0 of the name dpfpl_toy.runs.clip:cut"),
    "no such code": ("dpfpl_toy.runs.clip:clipped", "max(...)", "'max(...)' is there 0 times"),
    "code that is there twice": ("dpfpl_toy.runs.clip:clipped", "_1", "'_1' is there 4 times"),
}


@pytest.fixture
def root(tmp_path):
    for path, text in (("common/src/dpfpl_toy/runs/clip.py", CODE), ("tests/test_clip.py", TESTS)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    for package in ("dpfpl_toy", "dpfpl_toy/runs"):
        (tmp_path / "common/src" / package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path


@pytest.mark.parametrize("case", FOUND)
def test_a_piece_of_code_is_found_by_what_it_says(root, case):
    old, new, after = FOUND[case]
    assert (
        ANCHOR["broken"](root, "dpfpl_toy.runs.clip:clipped", old, new) == f"def clipped(value, bound):\n    {after}\n"
    )


@pytest.mark.parametrize("case", NOT_FOUND)
def test_what_is_not_there_exactly_once_is_told(root, case):
    place, old, told = NOT_FOUND[case]
    with pytest.raises(ANCHOR["AnchorError"], match=re.escape(told)):
        ANCHOR["broken"](root, place, old, "0")


def test_every_break_is_found_once_is_a_program_and_names_tests_that_exist():
    """So that a change of the code that a break is about is noticed with the change."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import mutate; print(len(mutate.MUTATIONS)); "
    program += "print('\\n'.join(mutate.problems(mutate.MUTATIONS, mutate.ROOT)))"
    told = subprocess.run([sys.executable, "-c", program, str(HERE)], capture_output=True, text=True, check=True)
    count, *problems = told.stdout.strip().splitlines()
    assert problems == []
    assert int(count) >= 160


@pytest.mark.privacy
def test_only_a_test_that_ran_and_failed_catches_a_break(root, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
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
        "no such test": "broken",
        "without end": "timed out",
    }
    assert told["caught"]["test"].endswith("test_a_large_value_is_cut")
    assert "AssertionError" in told["caught"]["why"]
    assert restored, "the copies are as before"
