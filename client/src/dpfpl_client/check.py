"""``dpfpl-client check``: everything that would stop a site from taking part, before it starts."""

import math
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpfpl_client.agent.audit import AuditLog
from dpfpl_client.agent.budget import spent as epsilons
from dpfpl_client.agent.build import check_delta, check_public, without_unusable_words
from dpfpl_client.agent.features import images_to_compute
from dpfpl_client.agent.keys import aggregation_keys, load_signing_key
from dpfpl_client.agent.ledger.anchor import Registry
from dpfpl_client.agent.ledger.book import LEDGER_FILE
from dpfpl_client.agent.ledger.dataset import compare, manifest_of, registered_manifest
from dpfpl_client.agent.ledger.view import observed_ledger, towards_recipients, verify
from dpfpl_client.agent.policy_file import PolicyFile
from dpfpl_client.agent.progress import duration
from dpfpl_client.approval import describe, experiments_asked_for, read_plan
from dpfpl_client.data import SiteData, left_out, list_classes, load_site_data
from dpfpl_client.learning.learner import PromptLearner, SiteFeatures
from dpfpl_client.models.backbone import Backbone, Scorer, too_long_answers
from dpfpl_client.models.loader import load_computing
from dpfpl_client.node.fleet_probe import probe_fleet
from dpfpl_client.site.init import template_policy
from dpfpl_client.site.settings import SiteSettings
from dpfpl_common.errors import ConfigError, DpfplError, ModelError, StateError
from dpfpl_common.experiment import Experiment
from dpfpl_common.ops.diagnostics import ERROR, OK, Finding, durable_folder, telemetry
from dpfpl_common.privacy.accounting import json_epsilon
from dpfpl_common.privacy_plan import site_noise_stddev
from dpfpl_common.secure.enrolment import fingerprint

__all__ = ["CheckReport", "check_site", "noise_to_signal", "noise_words"]


# Whether a site has enough images for the noise of an experiment, as a rule of thumb in words.


LITTLE, NOTICEABLE, MUCH = 0.1, 0.5, 2.0


def noise_to_signal(experiment: Experiment, training_images: int, smallest_class: int, feature_size: int) -> float:
    """Length of the noise over the largest length of what can be learned, over the whole experiment.

    ``per_step``: T noised sums of about q n gradients of length C at most; the noise of each has the length
    s sqrt(num_context * width), and over T steps grows by sqrt(T) only. ``one_shot``: the noised sum of the features of
    the smallest class. Under the unit ``site`` one update of length C a round.

    Args:
        experiment: noise resolved.
        training_images: n.
        smallest_class: images of the smallest class that the site has.
        feature_size: of the model's image features.
    """
    privacy, rounds = experiment.privacy, experiment.rounds
    z = privacy.noise_multiplier or 0.0
    values = math.prod(experiment.context_shape)
    if privacy.mechanism == "one_shot":
        return z * math.sqrt(feature_size) / max(1, smallest_class)
    stddev = max(site_noise_stddev(experiment), z * privacy.clipping_norm)
    if privacy.unit == "site":
        return stddev * math.sqrt(values) / (privacy.clipping_norm * len(experiment.sites) * math.sqrt(rounds.number))
    steps = experiment.total_steps
    signal = privacy.clipping_norm * privacy.sample_rate * max(1, training_images) * math.sqrt(steps)
    return stddev * math.sqrt(values) / signal


def noise_words(ratio: float, mechanism: str) -> tuple[str, bool]:
    """What such a ratio means for the accuracy, and whether it deserves a warning."""
    if ratio <= LITTLE:
        return "the noise is small beside what your images teach: expect little loss of accuracy", False
    if ratio <= NOTICEABLE:
        return "the noise is noticeable beside what your images teach: expect some loss of accuracy", False
    if ratio <= MUCH:
        more = math.ceil(ratio / NOTICEABLE)
        return (
            "the noise is about as large as what your images teach: expect a clear loss of accuracy; about "
            f"{more} times as many images, or a larger epsilon, would avoid that",
            True,
        )
    # Under one_shot the noise is that of one release, however many rounds follow.
    wishes = " or a larger epsilon" if mechanism == "one_shot" else ", a larger epsilon or fewer rounds"
    return (
        "there are too few images for this much noise: the prompt will learn almost nothing from this site; ask for "
        f"more images{wishes}",
        True,
    )


# Whether a site's model can do what is planned, and with the data that the site has: for ``dpfpl-client check``.


def _refused_for_its_model(experiment: Experiment, backbone: Backbone) -> str:
    """Why the agent would refuse the experiment at its first round, because of the model; empty where it would not."""
    if experiment.model.fingerprint not in ("", backbone.fingerprint):
        return (
            f"The plan asks for another model than the site has: for {experiment.model.id or 'one'!r} with the "
            f"fingerprint {experiment.model.fingerprint[:12]}, where site.toml's has {backbone.fingerprint[:12]}. "
            "Set model in site.toml. [OTHER_MODEL]"
        )
    try:
        PromptLearner(backbone, experiment, SiteFeatures.empty(backbone.feature_size, experiment.classes))
    except DpfplError as error:
        return str(error)
    return ""


def _words_for_the_task(experiment: Experiment, scorer: Scorer | None, data: SiteData, source: str) -> list[str]:
    """Warnings where the site's lines are not all what a task in words needs; for captions any line will do.

    ``scorer`` is None where the model cannot serve the experiment; then lengths are not looked at.
    """
    if source != "questions":
        return ["The plan wants answers in words; the site has none and would only send noise. [NO_QUESTIONS]"]
    warnings, task = [], experiment.task
    without = sum(not record.question for record in data.train)
    if task.kind == "vqa" and without:
        warnings.append(
            f"The plan asks questions; {without} of {len(data.train)} training lines have none and are trained on "
            "without one. [NO_QUESTIONS]"
        )
    if scorer is None:
        return warnings
    records = (*data.train, *data.test)
    if warning := too_long_answers(scorer, task, [record.label for record in records]):
        warnings.append(warning)
    asked = [(record.question or task.question, record.label) for record in records]
    too_long = sum(scorer.too_long(experiment.prompt.num_context, *pair) for pair in asked)
    if too_long:
        warnings.append(
            f"{too_long} of {len(asked)} lines make a turn longer than the model was made for; they teach nothing and "
            "count as answered wrong. [TURN_TOO_LONG]"
        )
    return warnings


def _other_data(source: str, backbone: Backbone) -> list[str]:
    """A warning where the model cannot learn, or not only, from data of this kind."""
    in_words = any(kind != "classify" for kind in backbone.tasks)
    if source == "questions" and not in_words:
        return [
            f"The data are questions or captions, which a model of the family {backbone.family!r} does not answer. Set "
            'model in site.toml to the generative one that the operator names; for a trial to "embedded-vlm". '
            "[NO_ANSWERS]"
        ]
    if source != "questions" and in_words:
        return [
            "The model answers questions, and the data are images of classes: where an experiment's task is not "
            "classify, the site would only send noise. [NO_QUESTIONS]"
        ]
    return []


TRIED_IMAGES = 8
"""From so many ``check`` reckons how long all will take."""


@dataclass
class CheckReport:
    """What was found; ``errors`` stop the site, ``warnings`` do not."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, findings: list[Finding]) -> None:
        """Count in what a doctor would say."""
        for finding in findings:
            if finding.level != OK:
                text = f"{finding.message} {finding.advice} [{finding.code}]"
                (self.errors if finding.level == ERROR else self.warnings).append(text)

    def make_strict(self) -> None:
        """Let warnings stop the site as errors do."""
        self.errors, self.warnings = self.errors + self.warnings, []


class _Check:
    """The parts of one check; a later part uses what an earlier one found."""

    def __init__(self, settings: SiteSettings, plan: Path | None) -> None:
        self.settings, self.plan = settings, plan
        self.report = CheckReport(facts={"site": settings.name})
        self.site_data: SiteData | None = None
        self.usable_data: SiteData | None = None  # of questions, those that the model can be told
        self.backbone: Backbone | None = None

    def data(self) -> None:
        """Images by class, and everything that is wrong with them."""
        report, settings = self.report, self.settings
        data = load_site_data(settings.data, list_classes(settings.data))
        self.site_data = data
        train = Counter(record.label for record in data.train)
        test = Counter(record.label for record in data.test)
        report.facts["images"] = {name: {"train": train[name], "test": test[name]} for name in data.classes}
        if settings.data.source == "questions":
            sides = {"train": data.train, "test": data.test}
            for kind, wanted in (("questions", True), ("captions", False)):
                counts = {name: sum(bool(r.question) == wanted for r in side) for name, side in sides.items()}
                if any(counts.values()):
                    report.facts[kind] = counts
        report.facts["training_images"] = len(data.train)
        report.facts["unreadable_images"] = len(data.unreadable)
        report.warnings += map(str, data.problems)
        if not data.test:
            report.warnings.append("There is no test image: accuracy at this site cannot be measured.")

    def model(self) -> None:
        """The model's identity."""
        self.backbone = load_computing(self.settings.model, self.settings.compute, offline=self.settings.offline)
        self.report.facts["model"] = {
            "id": self.settings.model,
            "width": self.backbone.width,
            "fingerprint": self.backbone.fingerprint,
            "computes": f"on {self.settings.compute.device} in {self.settings.compute.precision}",
            "stored": self.backbone.stored_precision,
            "tasks": list(self.backbone.tasks),
        }
        source = self.settings.data.source
        if self.plan is None:
            self.report.warnings += _other_data(source, self.backbone)
            if self.site_data is not None and source != "questions":
                try:
                    self.backbone.check_classes(self.site_data.classes)
                except ModelError as error:
                    self.report.errors.append(str(error))
        if self.site_data is not None and source == "questions":
            self.usable_data = without_unusable_words(self.site_data, self.backbone)
            self.report.warnings += map(str, self.usable_data.problems[len(self.site_data.problems) :])

    def features(self) -> None:
        """How long the next start will take: a few images are tried, nothing of them is kept."""
        if self.site_data is None or self.backbone is None:
            return
        data, backbone = self.site_data, self.backbone
        missing = images_to_compute(
            self.settings.state_folder / "cache", backbone, (*data.train, *data.test, *data.neighbour_test)
        )
        seconds = 0.0
        if missing:
            tried = missing[:TRIED_IMAGES]
            list(backbone.image_features(record.open() for record in tried[:1]))  # kernels are chosen now
            # On the processor, of whatever else runs meanwhile nothing counts; a GPU's time is only seen from outside.
            on_cpu = self.settings.compute.device == "cpu"
            clock, workers = (time.process_time, self.settings.agent.threads) if on_cpu else (time.perf_counter, 1)
            began = clock()
            list(backbone.image_features(record.open() for record in tried))
            seconds = (clock() - began) / len(tried) * len(missing) / workers
        self.report.facts["image_features"] = {"to_compute": len(missing), "takes_about": duration(seconds)}

    def policy_and_ledger(self) -> None:
        """The rules that hold, what they make of the images, the chain, and what is left."""
        report, settings = self.report, self.settings
        rules = PolicyFile(settings.path(settings.policy), settings.state_folder, AuditLog(None))
        policy = rules.peek()
        report.facts["policy"] = {
            "max_epsilon_per_experiment": policy.max_epsilon_per_experiment,
            "max_epsilon_lifetime": policy.max_epsilon_lifetime,
            "max_epsilon_operator_lifetime": policy.max_epsilon_operator_lifetime,
            "experiments": list(policy.experiments),
            "trust": list(policy.trust),
            "metrics": policy.metrics,
        }
        fresh = rules.looser_than(template_policy())
        if fresh:
            report.warnings.append(
                f"policy.toml allows more than this program's template in {', '.join(fresh)}, and nobody accepted that "
                "yet. dpfpl-client init asks about each. [POLICY_LOOSER_THAN_TEMPLATE]"
            )
        looser = rules.pending()
        if looser:
            report.warnings.append(
                f"policy.toml is looser than what was accepted in {', '.join(looser)}: the stricter old rules hold. "
                "To accept it: dpfpl-client policy accept. [POLICY_NOT_ACCEPTED]"
            )
        try:
            check_public(policy, settings.data)
        except ConfigError as error:  # what the ledger says is wanted all the same
            report.errors.append(str(error))
        if self.site_data is not None:
            check_delta(policy, self.site_data)
        paid = {"prompt_recipient": 0.0, "operator": 0.0}
        if (settings.state_folder / LEDGER_FILE).exists():
            with closing(observed_ledger(settings)) as ledger:
                paid = epsilons(ledger, policy.delta)
                report.facts["ledger_records"] = ledger.records
            report.errors += [f"{problem} [LEDGER_DAMAGED]" for problem in verify(settings)]
        report.facts["spent_epsilon"] = json_epsilon(towards_recipients(paid))
        report.facts["spent_epsilon_operator"] = json_epsilon(paid["operator"])
        over_operator = "central" not in policy.trust and paid["operator"] >= policy.max_epsilon_operator_lifetime
        if towards_recipients(paid) >= policy.max_epsilon_lifetime or over_operator:
            report.errors.append("The privacy budget of these data is used up. [BUDGET_EXHAUSTED]")

    def dataset(self) -> None:
        """Whether these are the images that the ledger charges, and only this one."""
        if self.site_data is None:
            return
        settings, report, own = self.settings, self.report, ""
        if (settings.state_folder / LEDGER_FILE).exists():
            with closing(observed_ledger(settings)) as ledger:
                own = ledger.identity
                if ledger.datasets:
                    report.facts["dataset"] = {"version": len(ledger.datasets), **ledger.datasets[-1]}
                    changes = compare(registered_manifest(settings.state_folder, ledger), manifest_of(self.site_data))
                    found = report.errors if changes.other_images else report.warnings
                    if changes.words():
                        text = f"{changes.sentence()} Put them back, or: dpfpl-client register."
                        found.append(f"{text} [DATASET_CHANGED]")
        owners = Registry(settings.registry_folder).owners(manifest_of(self.site_data).charged_digests)
        report.errors += [
            f"{shared} of the training images are charged to another privacy ledger, that of {where}. "
            "[DATASET_HAS_LEDGER]"
            for other, shared, where in owners
            if other != own
        ]

    def known_experiments(self) -> None:
        """Which training images the experiments leave out that this site was asked for."""
        if self.site_data is None or self.settings.data.source == "questions":
            return
        labels = Counter(record.label for record in self.site_data.train)
        for experiment in experiments_asked_for(self.settings.state_folder):
            unknown = left_out(labels, experiment.classes, "training images")
            if unknown is not None and not experiment.task.in_words:
                self.report.warnings.append(f"{experiment.name}: {unknown}")

    def surroundings(self) -> None:
        """Whether what is written stays, and nobody calls home."""
        state = self.settings.state_folder
        existing = next(folder for folder in (state, *state.parents) if folder.is_dir())
        self.report.add([*durable_folder("state folder", existing), *telemetry()])

    def kit(self) -> None:
        """Certificates and keys."""
        settings = self.settings
        for name in (settings.server.ca_certificate, settings.server.node_key):
            path = settings.path(name)
            if not path.is_file():
                raise StateError(
                    code="KIT_INCOMPLETE", message=f"{path} is missing.", advice="Ask the operator for a new kit."
                )
            if path.suffix == ".key" and path.stat().st_mode & 0o077:
                self.report.warnings.append(f"{path} can be read by others: chmod 600 {path}")
        load_signing_key(settings.path(settings.agent.key))
        keys = aggregation_keys(settings)
        if keys.key is not None:
            own = fingerprint(keys.key.public_key())
            self.report.facts["aggregation_key"] = {"own": own, "pinned_peers": sorted(keys.pinned())}

    def connection(self) -> None:
        """Whether the server answers, knows this site's key, and takes its clock."""
        settings, report = self.settings, self.report
        host, _, port = settings.server.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                report.facts["server"] = f"{settings.server.address} answers"
        except (OSError, ValueError) as error:
            report.warnings.append(
                f"The server {settings.server.address} does not answer now ({error}). The site keeps trying once "
                "started."
            )
            return
        authority, key = settings.path(settings.server.ca_certificate), settings.path(settings.server.node_key)
        if not (authority.is_file() and key.is_file()):
            return
        try:
            probe_fleet(settings.server.address, authority, key)
            report.facts["clock"] = "the server knows this site's key and takes its clock"
        except DpfplError as error:
            report.warnings.append(str(error))

    def planned(self) -> None:
        """What an experiment would mean here."""
        assert self.plan is not None
        report, source, experiment = self.report, self.settings.data.source, read_plan(self.plan)
        plan = describe(self.settings, experiment)
        report.facts["plan"] = plan
        if not plan["member"]:
            report.errors.append("This site is not on the plan's list. [NOT_A_MEMBER]")
        if plan["refused_because"]:
            report.errors.append(f"The policy refuses the plan: {plan['refused_because']}")
        if not all(cost["fits"] for cost in plan["costs"]):
            report.errors.append("The privacy budget does not cover the plan. [BUDGET_EXHAUSTED]")
        if self.backbone is None:
            return
        refusal = _refused_for_its_model(experiment, self.backbone)
        if refusal:
            report.errors.append(refusal)
        if self.site_data is None:
            return
        if experiment.task.in_words:
            scorer = None if refusal else self.backbone.scorer(experiment)
            data = self.usable_data or self.site_data
            report.warnings += _words_for_the_task(experiment, scorer, data, source)
        elif source == "questions":
            report.warnings.append(
                "The plan wants classes told apart; the site has questions or captions and would only send noise. "
                "[NO_KNOWN_CLASS]"
            )
        else:
            self._planned_classes(experiment, self.site_data, self.backbone, plan)

    def _planned_classes(
        self, experiment: Experiment, data: SiteData, backbone: Backbone, plan: dict[str, Any]
    ) -> None:
        labels = Counter(record.label for record in data.train)
        unknown = left_out(labels, experiment.classes, "training images")
        counts = Counter({name: count for name, count in labels.items() if name in experiment.classes})
        if unknown is not None:
            plan["left_out"] = unknown.message
        if not counts:
            text = f" {unknown.message}" if unknown is not None else ""
            nothing = "The site has no training image of the plan's classes and would only send noise."
            self.report.warnings.append(f"{nothing}{text} [NO_KNOWN_CLASS]")
            return
        if unknown is not None:
            self.report.warnings.append(f"{experiment.name}: {unknown}")
        ratio = noise_to_signal(experiment, counts.total(), min(counts.values()), backbone.feature_size)
        words, worrying = noise_words(ratio, experiment.privacy.mechanism)
        plan["noise_to_signal"], plan["accuracy"] = ratio, words
        if worrying:
            text = f"With {counts.total()} training images {words}. A rule of thumb. [FEW_IMAGES]"
            self.report.warnings.append(text)


def check_site(settings: SiteSettings, *, connect: bool = True, plan: Path | None = None) -> CheckReport:
    """Look at everything that could stop the site; nothing is sent but questions to the server, nothing is kept.

    Args:
        settings: the site's.
        connect: also ask the server.
        plan: an experiment to be judged with it.
    """
    check = _Check(settings, plan)
    parts: list[Callable[[], None]] = [check.data, check.model, check.features]
    parts += [check.policy_and_ledger, check.dataset, check.surroundings]
    parts.append(check.planned if plan is not None else check.known_experiments)
    if settings.server.address:
        parts += [check.kit, *([check.connection] if connect else [])]
    else:
        check.report.warnings.append("site.toml names no server; the site can only be checked and used alone.")
    for part in parts:
        try:
            part()
        except DpfplError as error:
            if str(error) not in check.report.errors:
                check.report.errors.append(str(error))
    return check.report
