"""Plays an operator who pushes a malicious bundle and runs a malicious server, against a real agent process.

Everything that such an operator can make a site do arrives at the agent's socket, as the site's own ClientApp sends
it. Each attack says what it wants, tries it, and tells what it got. Run as a program it writes docs/results/attacks.md
(``make attacks``); ``test_adversarial_operator.py`` asserts every line of it.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from killable import Driver, Site, make_experiment, train_request

from dpfpl_client.agent.endpoint import read_token
from dpfpl_common.privacy.accounting import epsilon
from dpfpl_common.wire import agent_pb2
from dpfpl_common.wire import codec as wire
from dpfpl_common.wire.payloads import EvaluateRequest

HEAD = """\
# What a malicious operator tried, and what it got

Written by `make attacks`, which plays an operator with a malicious bundle and a malicious server against a real agent
with the policy that a kit starts with, except that any number of experiments a day is let in; a test fails when a line
changes. What the operator's code can reach beside the socket, as the SuperNode's user, is in
[Architecture](../explanation/architecture.md#two-users).

| Wants to | Tries | Gets | Code |
|---|---|---|---|
"""
TAIL = """
What is left to an operator: the noised releases and their number, coarse accuracies if the policy lets them out,
when a cap is reached, and how many slots of time (`reply_slot`) the agent takes.
"""


@dataclass(frozen=True)
class Outcome:
    """One line of the table; ``ok`` is whether it is what must happen."""

    aim: str
    tried: str
    got: str
    code: str
    ok: bool


class Operator:
    """Speaks to the agent of one site with the ClientApp's credential."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.address = f"unix:{site.state}/agent.sock"
        self.channel = grpc.insecure_channel(self.address)
        self.header = (("authorization", f"Bearer {read_token(site.state / 'agent.token')}"),)
        self._names = 0

    def fresh(self, rounds: int = 3, **privacy: object):
        """An experiment under a name that was never used."""
        self._names += 1
        return make_experiment(f"attack-{self._names}", rounds, **privacy)

    def call(self, message, method: str = "Train", *, header=None):
        """The reply, or the name of gRPC's status."""
        data = message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        call = self.channel.unary_unary(f"/dpfpl.v1.SiteAgent/{method}" if "/" not in method else method)
        try:
            reply = agent_pb2.Reply.FromString(
                call(data, metadata=self.header if header is None else header, timeout=60)
            )
        except grpc.RpcError as error:
            return error.code().name
        return reply.refusal.code or reply.reply

    def train(self, number: int = 1, of=None, **changes: object):
        return self.call(wire.encode_request(train_request(number, of or self.fresh(), **changes)))

    def asked(self, path: str, value: object, of=None):
        """A training request with one value of the experiment exchanged, or a key more."""
        of = of or self.fresh()
        table = json.loads(of.to_json())
        *parents, last = path.split(".")
        place = table
        for name in parents:
            place = place[name]
        place[last] = value
        message = wire.encode_request(train_request(1, of))
        message.experiment = json.dumps(table, sort_keys=True, separators=(",", ":"))
        return self.call(message)

    @property
    def charges(self) -> int:
        return len(self.site.charges)


Attack = Callable[[Operator], Outcome]
ATTACKS: list[Attack] = []


def attack(function: Attack) -> Attack:
    ATTACKS.append(function)
    return function


def refused(aim: str, tried: str, expected: str, act: Callable[[Operator], object]) -> None:
    """An attack that must be refused with one code, at no charge."""

    def run(operator: Operator) -> Outcome:
        before = operator.charges
        got = act(operator)
        code = got if isinstance(got, str) else "answered"
        return Outcome(aim, tried, "nothing", code, code == expected and operator.charges == before)

    attack(run)


WEAKEN, CLIP, DRAIN = "weaken the noise", "raise the clipping", "drain the budget"
MORE, REPLAY, READ, BREAK = (
    "get more than the protocol gives",
    "draw fresh noise for one round",
    "read the data",
    "break it",
)

refused(WEAKEN, "noise_multiplier 0", "TOO_LITTLE_NOISE", lambda o: o.asked("privacy.noise_multiplier", 0.0))
refused(WEAKEN, "noise_multiplier 0.29, the policy's least is 0.3", "TOO_LITTLE_NOISE",
        lambda o: o.asked("privacy.noise_multiplier", 0.29))  # fmt: skip
refused(WEAKEN, "a negative noise_multiplier", "IMPOSSIBLE_VALUE", lambda o: o.asked("privacy.noise_multiplier", -4.0))
refused(WEAKEN, "noise within the limits, epsilon beyond the cap", "EPSILON_OVER_CAP",
        lambda o: o.train(of=o.fresh(30, noise_multiplier=1.0, trust="local")))  # fmt: skip
refused(WEAKEN, "many pretended sites, so that this one's share of the noise is small", "OPERATOR_EPSILON_OVER_CAP",
        lambda o: o.train(of=dataclasses.replace(
            o.fresh(noise_multiplier=10.0), sites=("north", *(f"s-{n}" for n in range(999))))))  # fmt: skip
refused(WEAKEN, "trust central: sums without noise", "TRUST_NOT_ALLOWED", lambda o: o.asked("privacy.trust", "central"))
refused(WEAKEN, "the paper's accounting instead of an accountant's", "ACCOUNTING_NOT_HONEST",
        lambda o: o.train(of=o.fresh(accounting="paper", trust="local")))  # fmt: skip
refused(WEAKEN, "delta 0.1", "DELTA_TOO_LARGE", lambda o: o.asked("privacy.target_delta", 0.1))
refused(WEAKEN, "a seed for the noise", "UNKNOWN_KEY", lambda o: o.asked("privacy.seed", 1))
refused(WEAKEN, "a switch `debug`", "UNKNOWN_KEY", lambda o: o.asked("debug", True))
refused(CLIP, "clipping_norm 1e5", "CLIPPING_NORM_TOO_LARGE", lambda o: o.asked("privacy.clipping_norm", 1e5))
refused(CLIP, "factor_clipping_norm 1e5", "CLIPPING_NORM_TOO_LARGE",
        lambda o: o.asked("privacy.factor_clipping_norm", 1e5))  # fmt: skip
refused(CLIP, "a nominal size of 0, to divide by nothing", "IMPOSSIBLE_VALUE",
        lambda o: o.asked("privacy.nominal_site_size", 0))  # fmt: skip
refused(MORE, "`return_raw` in the experiment", "UNKNOWN_KEY", lambda o: o.asked("return_raw", True))
refused(MORE, "a further field in the message, for more arrays", "UNKNOWN_FIELD",
        lambda o: o.call(wire.encode_request(train_request(1, o.fresh())).SerializeToString(deterministic=True)
                         + b"\xa2\x06\x03raw"))  # fmt: skip
for name in ("Export", "Ledger", "Policy", "Stop"):
    refused(MORE, f"a method {name}", "UNIMPLEMENTED", lambda o, name=name: o.call(b"", name))
refused(MORE, "the list of methods (reflection)", "UNIMPLEMENTED",
        lambda o: o.call(b"", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"))  # fmt: skip
refused(MORE, "a call without the site's token", "UNAUTHENTICATED", lambda o: o.call(b"", header=()))
refused(MORE, "an experiment that this site is not in", "NOT_A_MEMBER", lambda o: o.asked("sites", ["south"]))
refused(READ, "a model that is a path or an address", "OTHER_MODEL",
        lambda o: o.asked("model.fingerprint", "http://127.0.0.1/steal"))  # fmt: skip
for label, value, code in (("NaN", np.nan, "NONFINITE_INPUT"), ("1e38", 1e38, "NORM_TOO_LARGE")):

    def _poisoned(o: Operator, value: float = value):
        message = wire.encode_request(train_request(1, o.fresh()))
        array = np.zeros((4, 128), "<f4")
        array[0, 0] = value
        message.global_context.data = array.tobytes()
        return o.call(message)

    refused(BREAK, f"a prompt with {label} in it", code, _poisoned)
refused(BREAK, "a message of 9 MiB", "RESOURCE_EXHAUSTED", lambda o: o.call(bytes(9 << 20)))
refused(BREAK, "a learning rate of 1e9", "IMPOSSIBLE_VALUE", lambda o: o.asked("optimizer.personal_learning_rate", 1e9))
refused(BREAK, "a thousand million local steps", "IMPOSSIBLE_VALUE", lambda o: o.asked("rounds.local_steps", 10**9))
refused(BREAK, "round 4 of 3", "BAD_ROUND", lambda o: o.call(_numbered(o, 4)))


def _numbered(operator: Operator, number: int):
    message = wire.encode_request(train_request(1, operator.fresh()))
    message.round = number
    return message


@attack
def replayed(operator: Operator) -> Outcome:
    of, before = operator.fresh(), operator.charges
    updates = {operator.train(1, of).update.data for _ in range(100)}
    ok = len(updates) == 1 and operator.charges == before + 1
    return Outcome(REPLAY, "the same request 100 times", "the same bytes 100 times, for one charge", "answered", ok)


@attack
def nudged(operator: Operator) -> Outcome:
    of = operator.fresh()
    operator.train(1, of)
    before, smallest = operator.charges, float(np.nextafter(np.float32(0), np.float32(1)))
    codes = {operator.train(1, of, value=smallest * k) for k in range(1, 20)} | {operator.train(1, of, evaluate=True)}
    ok = codes == {"KEY_REUSED_OTHER_DIGEST"} and operator.charges == before
    tried = "the same round with a prompt that differs by the smallest number there is"
    return Outcome(REPLAY, tried, "nothing", ", ".join(map(str, codes)), ok)


@attack
def forked(operator: Operator) -> Outcome:
    of, before, got = operator.fresh(), operator.charges, []
    start = threading.Barrier(2)

    def ask(value: float) -> None:
        start.wait(10)
        got.append(operator.train(1, of, value=value))

    threads = [threading.Thread(target=ask, args=(value,)) for value in (0.0, 1e-3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = [answer for answer in got if isinstance(answer, str)]
    ok = codes == ["KEY_REUSED_OTHER_DIGEST"] and operator.charges == before + 1
    return Outcome(REPLAY, "two different requests for one round at once", "one release", ", ".join(codes), ok)


@attack
def rewound(operator: Operator) -> Outcome:
    of = operator.fresh()
    operator.train(2, of)
    before = operator.charges
    code = operator.train(1, of)
    return Outcome(
        REPLAY,
        "going back to an earlier round",
        "nothing",
        str(code),
        code == "ROUND_ORDER" and operator.charges == before,
    )


@attack
def changed(operator: Operator) -> Outcome:
    of = operator.fresh()
    operator.train(1, of)
    before = operator.charges
    code = operator.train(2, dataclasses.replace(of, privacy=dataclasses.replace(of.privacy, noise_multiplier=21.0)))
    tried = "another configuration under a name that the site knows"
    return Outcome(WEAKEN, tried, "nothing", str(code), code == "EXPERIMENT_CHANGED" and operator.charges == before)


@attack
def asked_for_other_classes(operator: Operator) -> Outcome:
    before = operator.charges
    got = operator.asked("classes", ["/data/train/cat/1.png", "../../etc/passwd"])
    ok = not isinstance(got, str) and operator.charges == before + 1
    tried = "classes that are paths, and of which the site has no image"
    return Outcome(READ, tried, "noise, as if it had images of them, for a charge", "answered", ok)


@attack
def oracle(operator: Operator) -> Outcome:
    of = operator.fresh()
    operator.train(1, of)
    before, chance, codes, values, scores = operator.charges, np.random.default_rng(0), Counter(), [], []
    for _ in range(60):
        context = chance.normal(0, 0.3, of.context_shape).astype("<f4")
        got = operator.call(wire.encode_request(EvaluateRequest(of, 3, context)), "Evaluate")
        codes[got if isinstance(got, str) else "answered"] += 1
        values += [] if isinstance(got, str) else list(got.metrics.values())
        scores += [] if isinstance(got, str) or not got.scores else [got.scores]
    answers = codes.pop("answered", 0)
    told = f"{answers} answers without an accuracy, {len(scores)} of them with noised counts, for a charge"
    ok = not values and len(scores) == 1 and operator.charges == before + 1
    return Outcome(READ, "60 evaluations of chosen prompts", told, ", ".join(codes) or "answered", ok)


@attack
def drained(operator: Operator) -> Outcome:
    spent, codes = 0, Counter()
    for _ in range(40):
        got = operator.train(1, operator.fresh(rounds=1, noise_multiplier=0.7, trust="local"))
        codes[got if isinstance(got, str) else "answered"] += 1
        if isinstance(got, str):
            break
    events = [event for charge in operator.site.charges for event in charge.events]
    told = [event for event in events if event.adversary == "prompt_recipient"]
    spent = epsilon(told, 1e-5)
    ok = "BUDGET_EXHAUSTED" in codes and spent <= LIFETIME
    return Outcome(
        DRAIN,
        "one new experiment after the other",
        f"releases until the lifetime cap of {LIFETIME:g}, none after",
        "BUDGET_EXHAUSTED",
        ok,
    )


@attack
def afterwards(operator: Operator) -> Outcome:
    """After all this the agent still answers what it released."""
    of = dataclasses.replace(make_experiment("attack-first"))
    got = operator.train(1, of)
    ok = not isinstance(got, str) and got.update.data == operator.first
    return Outcome(
        BREAK, "all of the above, then an honest repetition of the first round", "the very first bytes", "answered", ok
    )


LIFETIME = 20.0


def play() -> list[Outcome]:
    """All attacks, one after the other, on one agent process."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Driver(Path(folder))) as driver:
        site = Site(driver, driver.folder())
        with site.agent(policy="kit"):
            operator = Operator(site)
            operator.first = operator.train(1, make_experiment("attack-first")).update.data
            return [attack(operator) for attack in ATTACKS]


def table(outcomes: list[Outcome]) -> str:
    """The document."""
    order = (WEAKEN, CLIP, REPLAY, DRAIN, MORE, READ, BREAK)
    rows = sorted(outcomes, key=lambda outcome: order.index(outcome.aim))
    return HEAD + "".join(f"| {o.aim} | {o.tried} | {o.got} | `{o.code}` |\n" for o in rows) + TAIL


def main() -> int:
    """Write the table; exit code 1 if an attack got what it must not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/attacks.md"))
    arguments = parser.parse_args()
    outcomes = play()
    arguments.out.write_text(table(outcomes), encoding="utf-8")
    bad = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in bad:
        print(f"NOT AS IT MUST BE: {outcome}")
    print(f"{len(outcomes)} attacks, {len(outcomes) - len(bad)} as they must be; wrote {arguments.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
