from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpfpl_client.data import (
    VIEWPOINTS,
    DataSettings,
    ImageRecord,
    list_classes,
    load_pool,
    load_site_data,
    partition_sites,
)
from dpfpl_common.errors import ConfigError, DataError

KINDS = ["pathological", "dirichlet", "domain", "iid"]
NAMES = list_classes(DataSettings("digits"))


@pytest.fixture(scope="module")
def pool():
    return load_pool(DataSettings("digits"), None)


def keys(sites, part):
    return sorted(record.key for site in sites for record in getattr(site, part))


@st.composite
def pools(draw):
    sizes = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=7))
    return [
        ImageRecord(f"{label}/{split}/{i}", f"class {label}", f"{label}{split}{i}", split, None)
        for label, counts in enumerate(sizes)
        for split, count in zip(("train", "test"), counts, strict=True)
        for i in range(count)
    ]


@settings(deadline=None)
@given(
    pools(), st.sampled_from(KINDS), st.integers(1, 12), st.integers(-3, 3), st.sampled_from([0.001, 0.1, 1.0, 100.0])
)
def test_every_image_belongs_to_exactly_one_site(pool, kind, num_sites, seed, alpha):
    names = sorted({record.label for record in pool}) or ["class 0"]
    if sum(record.split == "train" for record in pool) < num_sites:
        with pytest.raises(DataError):
            partition_sites(pool, names, kind, num_sites, seed, alpha)
        return
    smallest_group = kind == "pathological" and min(Counter(r.label for r in pool if r.split == "train").values())
    if smallest_group and smallest_group < num_sites:
        return  # a group of sites may have fewer images than sites; see the test of TOO_MANY_SITES
    sites = partition_sites(pool, names, kind, num_sites, seed, alpha)
    assert keys(sites, "train") == sorted(record.key for record in pool if record.split == "train")
    assert all(site.train for site in sites)
    for site in sites:
        assert {r.label for r in site.train} == set(site.classes)
        assert {r.label for r in site.test} <= set(site.classes)
        mine = {r.digest for r in site.train}
        assert not mine & {r.digest for s in sites for r in s.test + s.neighbour_test}
        assert not {r.key for r in site.test} & {r.key for r in site.neighbour_test}
    local = Counter(keys(sites, "test"))
    assert max(local.values(), default=0) <= 1
    testable = {record.key for record in pool if record.split == "test"}
    for site in sites:
        if kind != "pathological":  # every test image is local or a neighbour's, for every site
            assert {r.key for r in site.test + site.neighbour_test} == testable
        else:
            assert not {r.label for r in site.neighbour_test} & set(site.classes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_sites", [1, 10, 100])
def test_a_partition_is_determined_by_its_seed_and_not_by_the_order(pool, kind, num_sites):
    first = partition_sites(pool, NAMES, kind, num_sites, seed=5)
    assert partition_sites(pool[::-1], NAMES, kind, num_sites, seed=5) == first
    if num_sites > 1:
        other = partition_sites(pool, NAMES, kind, num_sites, seed=6)
        assert [site.manifest_digest for site in other] != [site.manifest_digest for site in first]


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_that_loads_its_part_gets_what_the_simulation_gives_it(pool, kind):
    data = DataSettings("digits", partition=kind, num_sites=3, site_index=1, alpha=0.2, partition_seed=9)
    assert load_site_data(data, NAMES) == partition_sites(pool, NAMES, kind, 3, 9, alpha=0.2)[1]


def test_without_a_partition_one_site_has_everything(pool):
    data = load_site_data(DataSettings("digits"), NAMES)
    assert [data] == partition_sites(pool, NAMES, "none", 1, 0)
    assert len(data.train) + len(data.test) == len(pool)
    with pytest.raises(ConfigError, match="num_sites"):
        partition_sites(pool, NAMES, "none", 2, 0)


@pytest.mark.parametrize("num_sites", [2, 3, 7, 10])
def test_pathological_sites_have_disjoint_classes_dealt_evenly(pool, num_sites):
    sites = partition_sites(pool, NAMES, "pathological", num_sites, 0)
    assert sorted(name for site in sites for name in site.classes) == sorted(NAMES)
    assert max(len(site.classes) for site in sites) - min(len(site.classes) for site in sites) <= 1
    for site in sites:
        assert {r.label for r in site.test} == set(site.classes)
        assert {r.label for r in site.neighbour_test} == set(NAMES) - set(site.classes)


@pytest.mark.parametrize("num_sites", [11, 50, 100])
def test_more_pathological_sites_than_classes_share_the_classes_of_their_group(pool, num_sites):
    sites = partition_sites(pool, NAMES, "pathological", num_sites, 0)
    groups = {site.classes for site in sites}
    assert len(groups) == 5
    assert all(len(group) == 2 for group in groups)
    assert not any(set(one) & set(other) for one, other in combinations(groups, 2))
    for group in groups:
        sizes = [len(site.train) for site in sites if site.classes == group]
        assert max(sizes) - min(sizes) <= 1
    for site in sites:
        assert site.test
        assert {r.label for r in site.neighbour_test} == set(NAMES) - set(site.classes)


@pytest.mark.parametrize("alpha", [0.001, 0.3])
@pytest.mark.parametrize("num_sites", [10, 50, 100])
def test_every_dirichlet_site_has_a_few_training_images_and_a_test_image(pool, alpha, num_sites):
    sites = partition_sites(pool, NAMES, "dirichlet", num_sites, 0, alpha)
    assert min(len(site.train) for site in sites) >= 8
    assert all(site.test for site in sites)


def test_dirichlet_sites_are_uneven_at_a_small_alpha_and_even_at_a_large_one(pool):
    def largest_share(alpha):
        sites = partition_sites(pool, NAMES, "dirichlet", 10, 0, alpha)
        return [max(Counter(r.label for r in site.train).values()) / len(site.train) for site in sites]

    assert min(largest_share(0.05)) > max(largest_share(1000.0))


def test_dirichlet_tests_in_the_shares_that_it_trains(pool):
    for site in partition_sites(pool, NAMES, "dirichlet", 5, 0, 0.3):
        train, test = (Counter(r.label for r in part) for part in (site.train, site.test))
        for name in NAMES:
            assert abs(test[name] - train[name] * 433 / 1364) < 12


def test_iid_and_domain_sites_are_even_and_alike(pool):
    for kind in ("iid", "domain"):
        sites = partition_sites(pool, NAMES, kind, 4, 0)
        assert {len(site.train) for site in sites} == {341}
        assert all(site.classes == NAMES for site in sites)


def test_domain_gives_each_site_a_viewpoint_and_shows_neighbours_from_theirs(pool):
    sites = partition_sites(pool, NAMES, "domain", 6, 0)
    for index, site in enumerate(sites):
        assert {r.viewpoint for r in site.train + site.test} == {VIEWPOINTS[index % 4]}
        whose = {r.key: VIEWPOINTS[i % 4] for i, s in enumerate(sites) if i != index for r in s.test}
        assert {r.key: r.viewpoint for r in site.neighbour_test} == whose
    upright = {record.key: record for record in pool}
    turned = sites[1].train[0]
    assert turned.open().tobytes() != upright[turned.key].open().tobytes()


def test_a_viewpoint_and_a_partition_can_be_combined():
    data = DataSettings("digits", partition="iid", num_sites=4, site_index=1, viewpoint="mirrored")
    assert {r.viewpoint for r in load_site_data(data, NAMES).train} == {"mirrored"}


@pytest.mark.parametrize("kind", KINDS)
def test_more_sites_than_training_images_is_an_error(pool, kind):
    few = [record for record in pool if record.split == "train"][:5]
    with pytest.raises(DataError, match="6 sites") as raised:
        partition_sites(few, NAMES, kind, 6, 0)
    assert raised.value.code == "TOO_MANY_SITES"


def test_no_training_image_is_an_error(pool):
    with pytest.raises(DataError) as raised:
        partition_sites([record for record in pool if record.split == "test"], NAMES, "iid", 2, 0)
    assert raised.value.code == "NO_TRAINING_IMAGES"


def test_classes_that_are_not_asked_for_are_skipped_and_named(pool):
    sites = partition_sites(pool, NAMES[:8], "iid", 2, 0)
    assert all(site.classes == NAMES[:8] for site in sites)
    (problem,) = sites[0].problems
    assert problem.code == "UNKNOWN_CLASS"
    assert "354 of 1797 images" in problem.message
    assert "'eight' (174), 'nine' (180)" in problem.message


def test_one_class_sites_and_sites_without_test_images_are_told(pool):
    sites = partition_sites([r for r in pool if r.split == "train"], NAMES, "pathological", 10, 0)
    assert {problem.code for problem in sites[0].problems} == {"ONE_CLASS", "NO_TEST_IMAGES"}


def test_the_partition_is_frozen():
    # Sites on different machines compute their parts apart; another rule (or another stream of random numbers from
    # NumPy) would make the parts overlap. Golden values: this test's own output when the rule was made.
    splits = ("train", "train", "train", "train", "test")
    pool = [ImageRecord(f"{i}", NAMES[i % 10], f"{i:064x}", splits[i // 10 % 5], None) for i in range(600)]
    found = {kind: partition_sites(pool, NAMES, kind, 3, 0)[1].manifest_digest[:12] for kind in KINDS}
    assert found == {
        "pathological": "ad724e943b4f",
        "dirichlet": "e2af291fa133",
        "domain": "f2b9619dc2ae",
        "iid": "f2b9619dc2ae",
    }
