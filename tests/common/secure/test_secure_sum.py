"""Secure aggregation: the sum comes out exactly, one message says nothing, and a server that asks for more is refused.

Rows SE1 to SE5 of the list of attacks, and the core's part of SE7.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy import stats

from dpfpl_common.errors import DpfplError, PayloadError, RefusedError, RoundError
from dpfpl_common.secure import STEPS, graph
from dpfpl_common.secure import primitives as p
from dpfpl_common.secure.enrolment import fingerprint
from dpfpl_common.secure.server import ServerSum
from dpfpl_common.secure.site import Answered, SiteSum, signed_survivors
from dpfpl_common.secure.terms import Keys, Terms, named, names_of

pytestmark = pytest.mark.privacy

Ints = npt.NDArray[np.int64]


def terms(count: int, dropouts: int = 0, colluders: int = 1, attempt: int = 1) -> Terms:
    names = tuple(f"site-{number:03}" for number in range(1, count + 1))
    return Terms("0" * 64, "rows", attempt, names, dropouts, colluders)


class Federation:
    """Sites with random integers up to the largest ones, and a server."""

    def __init__(self, about: Terms, **options: Mapping[str, object]) -> None:
        generator = np.random.default_rng(len(about.sites))
        self.values: dict[str, Ints] = {s: generator.integers(-(2**52), 2**52, 20) for s in about.sites}
        self.sites = {s: SiteSum(about, s, **options.get(s, {})) for s in about.sites}  # type: ignore[arg-type]
        self.server = ServerSum(about)

    def until(self, step: str) -> "Federation":
        """All steps before this one, without loss."""
        while self.server.step != step:
            self.make()
        return self

    def make(self, lost: Iterable[str] = ()) -> None:
        """One step, in which some sites do not answer."""
        for site, request in self.server.requests().items():
            if site not in lost:
                self.server.take(site, self.sites[site].answer(self.server.step, request, self.values[site]))
        self.server.close()

    def run(self, lost_at: str = "", lost: Iterable[str] = ()) -> Ints:
        """All steps that are left; some sites are gone from one on."""
        for step in STEPS[STEPS.index(self.server.step) :]:
            self.make(lost if step == lost_at else ())
        return self.server.total()

    def plain(self, sites: Iterable[str]) -> Ints:
        return np.asarray(sum(self.values[site] for site in sites))


def refused(code: str, act: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(DpfplError) as refusal:
        act(*arguments)
    assert refusal.value.code == code
    assert isinstance(refusal.value, RefusedError | PayloadError)


@pytest.mark.parametrize("count", [3, 4, 10, 30])
def test_se1_the_sum_is_the_plain_one_bit_for_bit(count: int) -> None:
    federation = Federation(terms(count))

    assert np.array_equal(federation.run(), federation.plain(federation.values))


@pytest.mark.long
def test_se1_a_hundred_sites() -> None:
    federation = Federation(terms(100, dropouts=5))

    found = federation.run("masked", ("site-007", "site-100"))

    assert np.array_equal(found, federation.plain(set(federation.values) - {"site-007", "site-100"}))


def test_se1_more_than_a_hundred_sites_mask_with_some_neighbours() -> None:
    about = terms(101, dropouts=1)
    federation = Federation(about)

    found = federation.run("masked", ("site-007",))

    assert about.degree < 40
    assert np.array_equal(found, federation.plain(set(federation.values) - {"site-007"}))


def test_se2_a_masked_message_is_uniform_and_independent_of_what_it_hides() -> None:
    size = 100_000
    about = terms(3)
    for values in (np.zeros(size, dtype=np.int64), np.arange(size) * 2**35):
        sites = {s: SiteSum(about, s) for s in about.sites}
        server = ServerSum(about)
        for _ in range(2):
            for s, request in server.requests().items():
                server.take(s, sites[s].answer(server.step, request))
            server.close()
        sent = np.frombuffer(sites["site-001"].answer("masked", server.requests()["site-001"], values), dtype="<u8")
        for shift in (0, 28, 56):  # lowest, middle and highest byte
            counts = np.bincount((sent >> np.uint64(shift)).astype(np.int64) & 255, minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6
        assert abs(np.corrcoef(sent.astype(np.float64), values + np.arange(size))[0, 1]) < 0.02


def test_se2_every_pair_attempt_and_purpose_has_a_mask_of_its_own() -> None:
    seen = set()
    for attempt in (1, 2):
        federation = Federation(terms(4, attempt=attempt)).until("masked")
        for site, request in federation.server.requests().items():
            seen.add(federation.sites[site].answer("masked", request, federation.values[site]))
        label = terms(4, attempt=attempt).label
        seen |= {p.derived(bytes(32), label, purpose) for purpose in (b"self mask", b"pair mask", b"share")}

    assert len(seen) == 2 * (4 + 3)


@pytest.mark.parametrize("step", STEPS)
def test_se3_up_to_d_sites_may_go_after_any_step(step: str) -> None:
    federation = Federation(terms(8, dropouts=3))
    lost = ("site-002", "site-005", "site-008")

    found = federation.run(step, lost)

    counted = set(federation.values) - (set(lost) if step != "unmask" else set())
    assert np.array_equal(found, federation.plain(counted))


@pytest.mark.parametrize("step", STEPS[:3])
def test_se3_without_one_more_there_is_no_sum_and_the_sites_say_nothing(step: str) -> None:
    federation = Federation(terms(8, dropouts=2)).until(step)
    lost = ("site-002", "site-005", "site-008")

    with pytest.raises(RoundError, match="TOO_FEW_SITES"):
        federation.make(lost)

    if step == "masked":  # a server that goes on all the same
        taken = sorted(set(federation.values) - set(lost))
        request = p.framed(named(dict.fromkeys(taken, b"")), named(dict.fromkeys(lost, b"")))
        for site in taken:
            refused("TOO_FEW_SITES", federation.sites[site].answer, "unmask", request)


def test_se3_fewer_shares_than_the_threshold_unmask_nothing() -> None:
    about = terms(8, dropouts=3)
    federation = Federation(about).until("unmask")
    with pytest.raises(RoundError, match="TOO_FEW_SITES"):
        federation.make(about.sites[: len(about.sites) - about.threshold + 1])


@pytest.fixture
def asked() -> tuple[Federation, SiteSum]:
    """A federation before the last step, and one of its sites."""
    federation = Federation(terms(5, dropouts=2, colluders=0)).until("unmask")
    return federation, federation.sites["site-001"]


def lists(survivors: Iterable[str], gone: Iterable[str]) -> bytes:
    return p.framed(named(dict.fromkeys(survivors, b"")), named(dict.fromkeys(gone, b"")))


@pytest.mark.parametrize(
    ("code", "survivors", "gone"),
    [
        ("BOTH_SHARES", slice(5), slice(1, 2)),
        ("OTHER_SURVIVORS", slice(4), slice(0)),
        ("TOO_FEW_SITES", slice(2), slice(2, 5)),
    ],
)
def test_se4_both_shares_of_a_site_and_lists_about_other_sites_are_refused(
    asked: tuple[Federation, SiteSum], code: str, survivors: slice, gone: slice
) -> None:
    federation, site = asked
    everybody = sorted(federation.values)

    refused(code, site.answer, "unmask", lists(everybody[survivors], everybody[gone]))


def test_se4_two_lists_of_survivors_are_refused(asked: tuple[Federation, SiteSum]) -> None:
    federation, site = asked
    everybody = sorted(federation.values)
    first = site.answer("unmask", lists(everybody, ()))

    refused("STEP_ANSWERED", site.answer, "unmask", lists(everybody[:4], everybody[4:]))

    assert site.answer("unmask", lists(everybody, ())) == first


@pytest.mark.parametrize("colluders", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [3, 4, 9, 10, 100])
def test_se4_no_two_lists_of_survivors_reach_the_threshold(count: int, colluders: int) -> None:
    """Every honest site answers one list; only colluders answer both."""
    needed = graph.threshold_for(count, colluders)

    assert 2 * needed > count + colluders


def test_se4_one_list_told_to_some_and_another_to_others_unmasks_no_site() -> None:
    """The server lets some sites believe that a survivor is gone, and has both of its shares from too few each."""
    about = terms(6, dropouts=2)
    federation = Federation(about).until("unmask")
    everybody, victim = sorted(federation.values), "site-001"
    others = [site for site in everybody if site != victim]
    told = [0, 0]
    for number, site in enumerate(everybody):
        request = lists(others, [victim]) if number % 2 else lists(everybody, ())
        federation.sites[site].answer("unmask", request)
        told[number % 2] += 1

    assert min(told) < about.threshold


def test_se4_the_last_answer_says_under_signature_which_list_it_was() -> None:
    key = Ed25519PrivateKey.generate()
    about = terms(3)
    federation = Federation(about, **{"site-001": {"key": key}}).until("unmask")
    request = federation.server.requests()["site-001"]

    digest, signature, _ = p.unframed(federation.sites["site-001"].answer("unmask", request))

    key.public_key().verify(signature, signed_survivors(about, "site-001", request))
    assert len(digest) == 32


def test_se5_steps_out_of_order_are_refused() -> None:
    fresh = SiteSum(terms(3), "site-001")

    for step in STEPS[1:]:
        refused("STEP_ORDER", fresh.answer, step, b"")


def test_se5_a_second_request_of_a_step_is_refused_and_the_same_one_answered_alike() -> None:
    federation = Federation(terms(4, dropouts=1, colluders=0)).until("masked")
    site, request = federation.sites["site-001"], federation.server.requests()["site-001"]
    first = site.answer("masked", request, np.arange(20))
    fewer = {peer: box for peer, box in names_of(request, terms(4)).items() if peer != "site-004"}

    refused("STEP_ANSWERED", site.answer, "masked", named(fewer))

    assert site.answer("masked", request) == first


def test_se5_after_the_end_earlier_steps_are_refused_and_no_secret_is_left() -> None:
    federation = Federation(terms(3))
    federation.run()
    site = federation.sites["site-001"]

    refused("STEP_ANSWERED", site.answer, "keys", b"")

    assert site.answered.secret == b""
    assert not any(site.answered.replies[:3])


def test_se5_shares_of_another_attempt_or_changed_ones_are_refused() -> None:
    earlier, federation = (Federation(terms(3, attempt=n)).until("masked") for n in (1, 2))
    requests = federation.server.requests()
    boxes = names_of(requests["site-001"], terms(3))
    replayed = {**boxes, "site-002": names_of(earlier.server.requests()["site-001"], terms(3))["site-002"]}
    changed = {**boxes, "site-002": boxes["site-002"][:-1] + bytes([boxes["site-002"][-1] ^ 1])}
    swapped = {**boxes, "site-002": boxes["site-003"]}

    values = np.arange(20)
    for forged in (replayed, changed, swapped):
        refused("FORGED_SHARE", federation.sites["site-001"].answer, "masked", named(forged), values)


def test_se5_unknown_peers_own_keys_replaced_and_equal_keys_are_refused() -> None:
    federation = Federation(terms(4, dropouts=1, colluders=0)).until("shares")
    site = federation.sites["site-001"]
    keys = names_of(federation.server.requests()["site-001"], terms(4))
    stranger = {**keys, "stranger": keys["site-002"]}
    twice = p.framed(*(part for name in ("site-001", "site-002", "site-002") for part in (name.encode(), keys[name])))

    refused("UNKNOWN_PEER", site.answer, "shares", named(stranger))
    refused("UNKNOWN_PEER", site.answer, "shares", twice)
    refused("OTHER_KEYS", site.answer, "shares", named({**keys, "site-001": keys["site-002"]}))
    refused("OTHER_KEYS", site.answer, "shares", named({n: k for n, k in keys.items() if n != "site-001"}))
    refused("SAME_KEYS", site.answer, "shares", named({**keys, "site-002": keys["site-003"]}))
    refused("TOO_FEW_SITES", site.answer, "shares", named({n: keys[n] for n in ("site-001", "site-002")}))


def test_se5_a_key_of_small_order_is_refused() -> None:
    federation = Federation(terms(3)).until("shares")
    keys = names_of(federation.server.requests()["site-001"], terms(3))
    weak = Keys(bytes(32), *(getattr(Keys.from_bytes(keys["site-002"]), name) for name in ("masking", "commitment")))

    forged = named({**keys, "site-002": weak.to_bytes()})
    refused("BAD_KEY", federation.sites["site-001"].answer, "shares", forged)


@pytest.mark.parametrize("content", [b"\0\0\0\5ab", b"abc", p.framed(b"site-001"), p.framed(b"site-001", b"short")])
def test_se5_messages_that_are_cut_off_are_refused(content: bytes) -> None:
    federation = Federation(terms(3)).until("shares")

    refused("MALFORMED", federation.sites["site-001"].answer, "shares", content)


def test_se7_pinned_peers_must_sign_their_keys() -> None:
    """The core's part: an invented site is refused by name, and so is one whose keys were exchanged."""
    about = terms(3)
    own = {site: Ed25519PrivateKey.generate() for site in about.sites}
    pins = {site: fingerprint(key.public_key()) for site, key in own.items()}
    federation = Federation(about, **{s: {"key": own[s], "peers": pins} for s in about.sites}).until("shares")
    keys = names_of(federation.server.requests()["site-001"], about)
    site, honest = federation.sites["site-001"], Keys.from_bytes(keys["site-003"])
    kept = Answered.from_bytes(site.answered.to_bytes())
    narrow = SiteSum(about, "site-001", kept, peers={"site-002": pins["site-002"]})
    with pytest.raises(RefusedError, match="'site-003'") as refusal:
        narrow.answer("shares", named(keys))
    assert (refusal.value.code, refusal.value.rule) == ("PEER_NOT_PINNED", "peers")

    stranger = Ed25519PrivateKey.generate()
    public = stranger.public_key().public_bytes_raw()
    played = Keys(bytes([9]) + bytes(31), bytes([10]) + bytes(31), bytes(32))
    of_another_attempt = own["site-003"].sign(played.signed(terms(3, attempt=2), "site-003"))
    for forged in (
        played,  # unsigned
        replace(played, signature=honest.signature, signer=honest.signer),
        replace(played, signature=stranger.sign(played.signed(about, "site-003")), signer=public),
        replace(played, signature=stranger.sign(played.signed(about, "site-003")), signer=honest.signer),
        replace(played, signature=of_another_attempt, signer=honest.signer),
        replace(played, signature=own["site-002"].sign(played.signed(about, "site-003")), signer=honest.signer),
    ):
        refused("PEER_KEY_WRONG", site.answer, "shares", named({**keys, "site-003": forged.to_bytes()}))

    assert np.array_equal(federation.run(), federation.plain(about.sites))


def test_a_site_that_starts_again_between_steps_goes_on_with_the_same_bytes() -> None:
    about = terms(3)
    federation = Federation(about)
    for _ in STEPS:
        for site in about.sites:
            kept = Answered.from_bytes(federation.sites[site].answered.to_bytes())
            federation.sites[site] = SiteSum(about, site, kept)
        federation.make()

    assert np.array_equal(federation.server.total(), federation.plain(about.sites))


def test_a_wrong_share_is_noticed_and_no_wrong_sum_is_given() -> None:
    about = terms(3)
    federation = Federation(about).until("unmask")
    for site, request in federation.server.requests().items():
        digest, signature, told = p.unframed(federation.sites[site].answer("unmask", request))
        if site == "site-002":
            told = named({name: bytes(16) for name in names_of(told, about)})
        federation.server.take(site, p.framed(digest, signature, told))
    federation.server.close()

    with pytest.raises(RoundError, match="BAD_SHARES"):
        federation.server.total()


def test_fewer_shares_than_the_threshold_say_nothing_about_a_secret() -> None:
    """With t - 1 shares every secret is as possible as any other: a share can be made up for each."""
    first, second, *_ = p.shares(bytes(16), 3, 5)
    guesses = {p.combined(3, [(1, first), (2, second), (3, bytes([last]) + bytes(15))]) for last in range(50)}

    assert len(guesses) == 50


@pytest.mark.parametrize("sites", [101, 200, 500, 1000])
def test_the_graph_of_many_sites_is_sparse_regular_and_meets_its_conditions(sites: int) -> None:
    dropouts = sites // 20
    degree = graph.degree_for(sites, dropouts, 1)
    names = [f"site-{number}" for number in range(sites)]
    around = graph.neighbourhoods(names, degree, b"seed")

    assert {len(holders) for holders in around.values()} == {degree + 1}
    assert degree in range(2, 100, 2)
    assert all(site in around[peer] for site, holders in around.items() for peer in holders)
    assert around != graph.neighbourhoods(names, degree, b"other seed")
    assert graph.holders_threshold(sites, 1, degree) <= degree + 1


def test_a_hundred_sites_or_fewer_know_everybody() -> None:
    assert [graph.degree_for(sites, 0, 1) for sites in (3, 30, 100)] == [2, 29, 99]
