"""One ledger for one data set: F13, F18, F19."""

import dataclasses
import shutil

import numpy as np
import pytest
from failures import refused
from PIL import Image

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.build import build_agent, check_delta
from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import Ledger
from dpfpl_client.agent.ledger.dataset import compare, manifest_of, open_ledger, register_dataset, register_site
from dpfpl_client.agent.ledger.view import accept_rollback, verify
from dpfpl_client.data import DataSettings, list_classes, load_site_data
from dpfpl_client.site.settings import load_site
from dpfpl_common.errors import ConfigError
from dpfpl_common.policy import Policy
from dpfpl_common.privacy.accounting import PrivacyEvent

pytestmark = pytest.mark.privacy


def charge(ledger, number=1):
    events = [PrivacyEvent(a, "per_step", 2.0, 0.5, 1) for a in ("prompt_recipient", "other_site", "operator")]
    ledger.commit(ledger.reserve("pilot", number, "request", events), "release")


class Site:
    """A site with images of its own, which a test may damage; the agent's first steps without its model."""

    def __init__(self, folder, images):
        self.folder, self.images = folder, folder / "images"
        folder.mkdir(exist_ok=True)
        shutil.copytree(images, self.images)
        self.file = folder / "site.toml"
        self.file.write_text(
            f'name = "north"\nregistry = "{folder.parent}/registry"\n'
            f'[data]\nsource = "folder"\npath = "{self.images}"\n'
        )
        (folder / "policy.toml").write_text(
            'experiments = ["*"]\nmax_epsilon_per_experiment = 50.0\nmax_epsilon_lifetime = 100.0\n'
        )
        (folder / "policy.toml").chmod(0o640)

    @property
    def settings(self):
        return load_site(self.file)

    def data(self):
        return load_site_data(self.settings.data, list_classes(self.settings.data))

    def open(self):
        settings = self.settings
        registry, audit = Registry(settings.registry_folder), AuditLog(settings.state_folder / "audit.jsonl")
        settings.state_folder.mkdir(exist_ok=True)
        return open_ledger(settings.state_folder, registry, self.data(), audit)

    def start(self, rounds=0):
        ledger, problems = self.open()
        for number in range(1, rounds + 1):
            charge(ledger, number)
        ledger.close()
        return problems

    def charged(self):
        ledger = Ledger(self.settings.state_folder / "ledger.sqlite", Registry(self.settings.registry_folder))
        try:
            return sum(event.steps for event in ledger.events())
        finally:
            ledger.close()

    def paint(self, name, level, split="train", folder="bright"):
        pixels = np.full((24, 24, 3), level, np.uint8)
        Image.fromarray(pixels).save(self.images / split / folder / name)


@pytest.fixture
def make(tmp_path, image_folder):
    return lambda name="site", images=image_folder: Site(tmp_path / name, images)


@pytest.fixture
def site(make):
    return make()


# F13: the same images twice


def test_F13_a_second_state_folder_for_the_same_images_is_refused(site, make):
    site.start()
    second = make("second")
    assert str(site.settings.state_folder) in refused("DATASET_HAS_LEDGER", second.open).message
    assert not (second.settings.state_folder / "ledger.sqlite").exists()


def test_F13_also_if_files_were_renamed_copied_again_or_mixed_with_others(site, make):
    site.start()
    second = make("second")
    for path in sorted((second.images / "train" / "bright").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    second.paint("own.png", 7)
    for path in sorted((second.images / "train" / "dark").iterdir())[1:]:
        path.unlink()
    assert "9 of the images" in refused("DATASET_HAS_LEDGER", second.open).message


def test_F13_other_images_get_a_ledger_of_their_own(site, make):
    site.start()
    second = make("second")
    for number, path in enumerate(sorted(second.images.rglob("*.png"))):
        Image.fromarray(np.full((24, 24, 3), number, np.uint8)).save(path)
    second.start()


def test_F13_a_deleted_state_folder_does_not_give_the_budget_back(site):
    site.start(rounds=2)
    shutil.rmtree(site.settings.state_folder)
    refused("DATASET_HAS_LEDGER", site.open)
    assert accept_rollback(site.settings)["charged"][0]["last_round"] == 2
    site.start()
    assert site.charged() == 2


def test_F13_two_agents_on_copies_of_one_state_folder(site, make, tmp_path):
    site.start()
    clone = make("clone")
    shutil.copytree(site.settings.state_folder, clone.settings.state_folder)
    first = build_agent(site.settings)
    refused("LEDGER_IN_USE", build_agent, clone.settings)
    first.lock.release()
    build_agent(clone.settings).lock.release()


def test_F13_two_partitions_of_one_source_are_two_data_sets(tmp_path):
    registry = Registry(tmp_path / "registry")
    for index in (0, 1):
        settings = DataSettings(source="digits", partition="pathological", num_sites=4, site_index=index)
        data = load_site_data(settings, list_classes(settings))
        state = tmp_path / f"state-{index}"
        state.mkdir()
        open_ledger(state, registry, data, AuditLog(None))[0].close()


# F18: files that cannot be read


def test_F18_what_is_unreadable_at_the_registration_is_noted_and_left_out(site):
    (site.images / "train/bright/0.png").write_bytes(b"no image")
    site.start()
    ledger, problems = site.open()
    ledger.close()
    assert problems == []
    assert (ledger.datasets[-1]["unreadable"], ledger.datasets[-1]["images"]["train"]) == (1, 7)


@pytest.mark.parametrize("rule", ["skip", "refuse"])
def test_F18_what_breaks_later_is_skipped_or_refused_as_was_decided(site, rule):
    register_site(site.settings, rule)
    (site.images / "train/bright/0.png").write_bytes(b"no image")
    if rule == "refuse":
        assert "0.png" in refused("IMAGE_UNREADABLE", site.open).message
        return
    (problem,) = site.start()
    assert "0.png" in problem.message
    ledger, _ = site.open()
    assert ledger.datasets[-1]["images"]["train"] == 8  # the registered number stays


# F19: other images than those registered


CHANGES = {
    "added": lambda site: site.paint("new.png", 9),
    "removed": lambda site: (site.images / "train/dark/1.png").unlink(),
    "repainted": lambda site: site.paint("0.png", 9),
    "relabelled": lambda site: (site.images / "train/dark/1.png").rename(site.images / "train/bright/x.png"),
    "moved_to_training": lambda site: (site.images / "test/dark/1.png").rename(site.images / "train/dark/x.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_F19_changed_images_are_refused_until_registered_under_the_same_ledger(site, change):
    site.start(rounds=1)
    CHANGES[change](site)
    refused("DATASET_CHANGED", site.open)
    result = register_site(site.settings)
    assert (result["version"], bool(result["changes"])) == (2, True)
    site.start()
    assert site.charged() == 1
    assert verify(site.settings)  # the charge of this test has no release, and nothing else is wrong
    events = [line["event"] for line in AuditLog(site.settings.state_folder / "audit.jsonl").lines()]
    assert events.count("dataset_registered") == 2


def test_F19_a_renamed_file_is_the_same_image(site):
    site.start()
    (site.images / "train/dark/1.png").rename(site.images / "train/dark/renamed.png")
    assert site.start() == []


def test_F19_another_image_under_the_name_of_a_renamed_one_is_no_registered_image(site):
    site.start()
    (site.images / "train/dark/1.png").rename(site.images / "train/dark/renamed.png")
    Image.fromarray(np.full((24, 24, 3), 123, np.uint8)).save(site.images / "train/dark/1.png")
    assert "1 added ('train/dark/1.png')" in refused("DATASET_CHANGED", site.open).message


@pytest.mark.parametrize(("pixels", "part", "moved"), [("others", "test", 1), ("others", "train", 0)])
def test_a_picture_that_was_edited_into_the_other_part_ends_parallel_composition(site, pixels, part, moved):
    """Its pixels are others, its name is not: whoever it shows may be in both parts' releases."""
    site.start()
    state, before = site.settings.state_folder, manifest_of(site.data())
    images = {name: dict(rows) for name, rows in before.images.items()}
    key, (_, label) = images["train"].popitem()
    images[part][key] = (pixels, label)
    registry = Registry(site.settings.registry_folder)
    ledger = Ledger(state / "ledger.sqlite", registry)
    edited = dataclasses.replace(before, images=images)
    register_dataset(state, registry, ledger, edited, AuditLog(state / "audit.jsonl"))
    assert ledger.datasets[-1]["moved"] == moved
    ledger.close()


def test_F19_images_of_an_earlier_version_stay_charged_to_the_ledger(site, make):
    site.start()
    for path in sorted((site.images / "train").rglob("*.png")):
        Image.fromarray(np.full((24, 24, 3), len(path.name) + len(str(path)) % 97, np.uint8)).save(path)
    site.paint("other.png", 99)
    register_site(site.settings)
    refused("DATASET_HAS_LEDGER", make("second").open)


def test_F19_the_manifest_cannot_be_exchanged(site):
    site.start()
    other = manifest_of(site.data(), "refuse")
    other.write(site.settings.state_folder / "dataset.json")
    refused("MANIFEST_DAMAGED", site.open)


def test_a_registration_needs_the_agent_to_be_stopped(site):
    built = build_agent(site.settings)
    refused("STATE_LOCKED", register_site, site.settings)
    built.lock.release()
    with pytest.raises(ConfigError, match="IMPOSSIBLE_VALUE"):
        register_site(site.settings, "ignore")


def test_the_manifest_stays_at_the_site_and_names_changes(site):
    before = manifest_of(site.data())
    site.paint("new.png", 9)
    changes = compare(before, manifest_of(site.data()))
    assert changes.words().startswith("1 added (")
    assert changes.sentence().startswith("The images are not those")


def test_another_class_map_is_not_called_other_images(site):
    before = manifest_of(site.data())
    images = {part: {k: (d, n.upper()) for k, (d, n) in rows.items()} for part, rows in before.images.items()}
    changes = compare(before, dataclasses.replace(before, images=images))
    assert changes.other_images
    assert changes.removed == changes.changed == changes.added == []
    assert len(changes.relabelled) == sum(len(rows) for rows in before.images.values())
    assert "but not what is said of them" in changes.sentence()


def test_P11_a_delta_that_could_publish_an_image_is_refused(site):
    with pytest.raises(ConfigError, match="DELTA_TOO_LARGE"):
        check_delta(Policy(("*",), 1.0, 1.0, delta=0.009), _many(site.data(), 120))
    check_delta(Policy(("*",), 1.0, 1.0, delta=1e-5), _many(site.data(), 120))


def _many(data, count):
    import dataclasses

    return dataclasses.replace(data, train=data.train[:1] * count)
