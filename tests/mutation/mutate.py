"""Breaks the mechanism on purpose, one way at a time, and shows that the tests notice (``make mutate``).

What it does. Before anything runs, every break is looked at: the piece of code to change is there exactly once
(``anchor.py`` says how it is found), what it becomes compiles and names nothing that is not there, its tests exist.
Then all these tests must pass in unbroken copies of the working tree, file by file. Then each break is made in a copy,
its tests are run there, and it is

- ``caught``: one of its tests ran and failed (which ends the run), and not because the broken code could not be
  imported or read;
- ``MISSED``: all its tests passed;
- ``BROKEN``: it was no working program, so its failure says nothing;
- ``TIMED OUT``: its tests did not end; nothing is concluded from that;
- ``NOT SHOWN``: its tests are skipped here (the reason is told).

Only the first counts. Tests run in forks of a process that has imported torch, Flower and the like, but nothing of
this project (``warm.py``); two copies work side by side. Results are kept in ``runs/mutate``, so a run that was cut off
goes on. They hold for this very working tree and this very break; a change of either forgets them. The last line is
``caught N of N``, N being all that were chosen; the exit code is 0 only if all are caught.

    make mutate
    make mutate MUTATE_ARGS=--check                  # only look at the breaks: seconds, and says where moved code is
    make mutate MUTATE_ARGS="--part 1/3"             # a third of them, in order; the others keep their results
    make mutate MUTATE_ARGS="one_shot row"           # those whose names have all these words
    make mutate MUTATE_ARGS="--fresh --workers 1"    # nothing is taken from an earlier run
"""

import argparse
import ast
import compileall
import hashlib
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accounting import ACCOUNTING
from anchor import AnchorError, broken, module_file
from crash_safety import CRASH_SAFETY
from doors import DOORS
from federation import FEDERATION
from mechanism import MECHANISM
from noninterference import NONINTERFERENCE
from one_shot import ONE_SHOT
from secure import SECURE
from site_gate import SITE_GATE
from warm import Child, Outcome, started, warm_up

from server import SERVER

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "failed": "caught ",
    "passed": "MISSED ",
    "broken": "BROKEN ",
    "timed out": "TIMED OUT ",
    "skipped": "NOT SHOWN ",
}
IGNORED = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "dist", "build", "wheels", ".coverage*")
RESULTS = "runs"
"""At the root alone: a package may have this name."""


@dataclass(frozen=True)
class Mutation:
    """One way to break the promise.

    Attributes:
        name: what is broken, in words.
        place: where: dotted module and name, see ``anchor.py``.
        old: a piece of code that is there exactly once.
        new: what it becomes.
        tests: node ids of which at least one must fail.
    """

    name: str
    place: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def module(self) -> str:
        """Dotted name of the changed module."""
        return self.place.split(":")[0]

    def file(self, root: Path) -> Path:
        """The changed file."""
        return module_file(root, self.place)

    def text(self, root: Path) -> str:
        """What the changed file becomes."""
        return broken(root, self.place, self.old, self.new)


MUTATIONS = tuple(
    Mutation(*parts)
    for parts in (
        *MECHANISM,
        *ONE_SHOT,
        *SECURE,
        *ACCOUNTING,
        *FEDERATION,
        *SERVER,
        *SITE_GATE,
        *CRASH_SAFETY,
        *NONINTERFERENCE,
        *DOORS,
    )
)


def problems(mutations: Sequence[Mutation], root: Path) -> list[str]:
    """What is wrong with the breaks themselves, by name."""
    found = []
    names = [mutation.name for mutation in mutations]
    found += [f"{name}: there are two of this name" for name in sorted({n for n in names if names.count(n) > 1})]
    for mutation in mutations:
        for test in mutation.tests:
            file, function = re.match(r"([^:]+)::(\w+)", test).groups()
            path = root / file
            if not path.is_file() or f"def {function}(" not in path.read_text(encoding="utf-8"):
                found.append(f"{mutation.name}: there is no test {test}")
    return found + _no_programs(mutations, root)


def _no_programs(mutations: Sequence[Mutation], root: Path) -> list[str]:
    """Breaks whose place is not found, that change nothing, do not compile, or name what is nowhere defined."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, mutation in enumerate(mutations):
            path = Path(folder) / f"{number}.py"
            try:
                before, after = mutation.file(root).read_text(encoding="utf-8"), mutation.text(root)
                if ast.dump(ast.parse(before)) == ast.dump(ast.parse(after)):
                    found.append(f"{mutation.name}: it changes nothing")
                path.write_text(after, encoding="utf-8")
                py_compile.compile(str(path), cfile=str(path.with_suffix(".pyc")), doraise=True)
            except (AnchorError, SyntaxError) as error:
                found.append(f"{mutation.name}: {error}")
            except py_compile.PyCompileError as error:
                found.append(f"{mutation.name}: {error.exc_value}")
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F823", "-q"]
        command += ["--output-format", "concise", folder]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in told.stdout.splitlines():
            if place := re.match(r".*?(\d+)\.py:\d+:\d+: (F82.*)", line):
                found.append(f"{mutations[int(place[1])].name}: {place[2]}")
    return found


class Results:
    """What earlier runs on this very working tree showed; one line of JSON each, written as it becomes known."""

    def __init__(self, file: Path, tree: str, fresh: bool) -> None:
        self._file, self._tree = file, tree
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() and not fresh else []
        kept = [json.loads(line) for line in lines if line.endswith("}")]
        self._known = {entry["key"]: Outcome(**entry["outcome"]) for entry in kept if entry["tree"] == tree}
        if fresh:
            file.unlink(missing_ok=True)

    def known(self, *parts: str) -> Outcome | None:
        """The outcome of what these texts describe."""
        return self._known.get(_digest(parts))

    def keep(self, outcome: Outcome, name: str, *parts: str) -> None:
        """Remember it, also for later runs."""
        key = _digest(parts)
        self._known[key] = outcome
        entry = {"tree": self._tree, "key": key, "name": name, "outcome": vars(outcome)}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def tree_digest(root: Path) -> str:
    """Of all code and all tests; the lists of breaks are not part of it, as each break is known by its own text."""
    files = [root / "pyproject.toml", root / "constraints.txt"]
    for folder in ("common", "models", "client", "server", "bench", "research", "tests"):
        files += [p for p in (root / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    parts = []
    for file in sorted(files):
        if file.parent.name != "mutation" or file.name in ("mutate.py", "warm.py"):
            parts += [str(file.relative_to(root)), hashlib.sha256(file.read_bytes()).hexdigest()]
    return _digest(parts)


@dataclass(frozen=True)
class Job:
    """One selection of tests to run, unbroken or under a mutation."""

    tests: tuple[str, ...]
    mutation: Mutation | None = None
    limit_s: float = 600.0


def side_by_side(jobs: Sequence[Job], copies: Sequence[Path], told: Callable[[Job, Outcome], None]) -> None:
    """Run all jobs, each in a copy of its own for the time; ``told`` is called as each ends."""
    waiting, free = list(jobs), list(copies)
    running: list[tuple[Job, Path, Child]] = []
    try:
        while waiting or running:
            while waiting and free:
                job, copy = waiting.pop(0), free.pop()
                if job.mutation:
                    file = job.mutation.file(copy)
                    shutil.copyfile(file, copy / "unbroken.txt")
                    file.write_text(job.mutation.text(copy), encoding="utf-8")
                module = job.mutation.module if job.mutation else ""
                running.append((job, copy, started(copy, job.tests, module, job.limit_s)))
            time.sleep(0.02)
            for entry in list(running):
                job, copy, child = entry
                if (outcome := child.ended()) is not None:
                    running.remove(entry)
                    if job.mutation:
                        shutil.copyfile(copy / "unbroken.txt", job.mutation.file(copy))
                    free.append(copy)
                    told(job, outcome)
    finally:
        for _, _, child in running:
            child.kill()


def made_copies(folder: Path, count: int, root: Path = ROOT) -> list[Path]:
    """Copies of the working tree; their byte code is checked against the source's content, not against its time."""
    folder.chmod(0o755)  # some tests have other users run what is inside
    copies = [folder / f"copy-{number}" for number in range(count)]
    ignored = shutil.ignore_patterns(*IGNORED)

    def left_out(of: str, names: list[str]) -> set[str]:
        return ignored(of, names) | ({RESULTS} if Path(of) == root else set())

    for copy in copies:
        shutil.copytree(root, copy, ignore=left_out)
        for name in ("common", "models", "client", "server", "bench"):
            mode = py_compile.PycInvalidationMode.CHECKED_HASH
            compileall.compile_dir(copy / name / "src", quiet=2, invalidation_mode=mode)
    return copies


def by_file(mutations: Sequence[Mutation]) -> dict[str, tuple[str, ...]]:
    """The tests of all of them, each once, by file; a whole test function makes its single cases superfluous."""
    every = dict.fromkeys(test for mutation in mutations for test in mutation.tests)
    needed = [test for test in every if "[" not in test or test.split("[")[0] not in every]
    return {
        file: tuple(t for t in needed if t.startswith(f"{file}::")) for file in {t.split("::")[0]: 0 for t in needed}
    }


def needed_files(mutations: Sequence[Mutation]) -> dict[str, tuple[str, ...]]:
    """The files of their tests, each with the tests of all breaks, so that parts share what is known of a file."""
    used = {test.split("::")[0] for mutation in mutations for test in mutation.tests}
    return {file: tests for file, tests in by_file(MUTATIONS).items() if file in used}


def unbroken(mutations: Sequence[Mutation], copies: Sequence[Path], results: Results) -> bool:
    """Whether all tests pass without any break; prints what does not."""
    files = needed_files(mutations)
    todo = [Job(tests) for tests in files.values() if results.known("unbroken", *tests) is None]
    side_by_side(todo, copies, lambda job, outcome: results.keep(outcome, "unbroken", "unbroken", *job.tests))
    sound = True
    for tests in files.values():
        outcome = results.known("unbroken", *tests)
        assert outcome is not None
        if outcome.word not in ("passed", "skipped"):
            sound = False
            print(f"without any break, {outcome.word}: {outcome.test or tests[0]} ({outcome.why})", flush=True)
    return sound


def shown(mutations: Sequence[Mutation], copies: Sequence[Path], results: Results) -> int:
    """Make the breaks whose outcome is not known yet, print one line each; how many of all are caught."""

    def key(mutation: Mutation) -> tuple[str, ...]:
        return ("broken", mutation.place, mutation.old, mutation.new, *mutation.tests)

    def tell(mutation: Mutation, outcome: Outcome, earlier: str = "") -> None:
        why = f" [{outcome.test.split('::')[-1]}: {outcome.why}]" if outcome.test else f" [{outcome.why}]"
        print(f"{WORDS[outcome.word]} {mutation.name} ({earlier or f'{outcome.seconds:.1f} s'}){why}", flush=True)

    def told(job: Job, outcome: Outcome) -> None:
        assert job.mutation is not None
        results.keep(outcome, job.mutation.name, *key(job.mutation))
        tell(job.mutation, outcome)

    todo, files = [], needed_files(mutations)
    for mutation in mutations:
        found = [results.known("unbroken", *files[test.split("::")[0]]) for test in mutation.tests]
        before = [outcome for outcome in found if outcome is not None]
        assert len(before) == len(found)
        if (outcome := results.known(*key(mutation))) is not None:
            tell(mutation, outcome, "earlier")
        elif skipped := [outcome for outcome in before if outcome.word == "skipped"]:
            tell(mutation, skipped[0])
        else:
            limit_s = 120.0 + 5.0 * sum(outcome.seconds for outcome in before)
            todo.append(Job(mutation.tests, mutation, limit_s))
    side_by_side(todo, copies, told)
    outcomes = [results.known(*key(mutation)) for mutation in mutations]
    return sum(outcome is not None and outcome.word == "failed" for outcome in outcomes)


def part_of(mutations: Sequence[Mutation], text: str) -> list[Mutation]:
    """``2/3`` is the second third; the parts together are all."""
    number, count = (int(each) for each in text.split("/"))
    if not 1 <= number <= count:
        raise ValueError
    return list(mutations[number - 1 :: count])


def main(arguments: Sequence[str]) -> int:
    """Look at the breaks, run the baseline, make the breaks; print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only breaks whose names have all these words")
    parser.add_argument("--check", action="store_true", help="look at the breaks and run none")
    parser.add_argument("--part", default="1/1", help="which share of them, for instance 1/3")
    parser.add_argument("--workers", type=int, default=2, help="copies that work side by side")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs showed")
    parser.add_argument("--results", type=Path, default=ROOT / RESULTS / "mutate" / "results.jsonl")
    options = parser.parse_args(arguments)
    if found := problems(MUTATIONS, ROOT):
        print("\n".join(["Nothing was run, because of the breaks themselves:", *found]))
        return 2
    if options.check:
        print(f"{len(MUTATIONS)} breaks, each found once")
        return 0
    chosen = [mutation for mutation in MUTATIONS if all(word in mutation.name for word in options.words)]
    try:
        chosen = part_of(chosen, options.part)
    except ValueError:
        parser.error(f"--part {options.part}: expected a share such as 1/3")
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends with it
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copies = made_copies(Path(folder), options.workers)
        results = Results(options.results, tree_digest(copies[0]), options.fresh)
        if not unbroken(chosen, copies, results):
            print("nothing can be shown")
            return 2
        print(f"unbroken, all tests pass ({time.monotonic() - began:.0f} s)", flush=True)
        caught = shown(chosen, copies, results)
    print(f"{time.monotonic() - began:.0f} s")
    print(f"caught {caught} of {len(chosen)}")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
