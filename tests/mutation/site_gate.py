"""Ways to break the site's gate: name, file, text that occurs there exactly once, what it becomes, tests."""

__all__ = ["SITE_GATE"]

AGENT = "client/src/dpfpl_client/agent/"
CHAIN_TESTS = ("tests/client/agent/test_ledger_chain.py",)
POLICY_TESTS = ("tests/client/agent/test_policy_file.py",)
GATE_TESTS = ("tests/client/agent/test_gate.py",)
DATASET_TESTS = ("tests/client/agent/test_dataset.py",)
CORE_TESTS = ("tests/client/agent/test_core.py",)

SITE_GATE = (
    (
        "ledger: a changed record passes",
        AGENT + "chain.py",
        "        if link.hash != chained(previous.hash, link.content):",
        "        if False:",
        CHAIN_TESTS,
    ),
    (
        "ledger: the hash leaves the record before it out",
        AGENT + "chain.py",
        'f"{previous}\\n{content}"',
        'f"\\n{content}"',
        CHAIN_TESTS,
    ),
    (
        "ledger: a removed record passes",
        AGENT + "chain.py",
        "        if link.sequence != previous.sequence + 1:",
        "        if False:",
        CHAIN_TESTS,
    ),
    (
        "ledger: a shorter copy passes",
        AGENT + "ledger.py",
        "        elif remembered.sequence > here:",
        "        elif False:",
        CHAIN_TESTS,
    ),
    (
        "ledger: a copy that went on by itself passes",
        AGENT + "ledger.py",
        "        elif self._hash_of(remembered.sequence) != remembered.head:",
        "        elif False:",
        CHAIN_TESTS,
    ),
    (
        "ledger: the anchor stays behind",
        AGENT + "ledger.py",
        "            self._anchor.advance(self.snapshot())\n        return sequence",
        "            pass\n        return sequence",
        CHAIN_TESTS,
    ),
    (
        "ledger: an accepted old copy forgets what was spent since",
        AGENT + "ledger.py",
        "            for name, total in missing.items():\n",
        "            for name, total in ():\n",
        CHAIN_TESTS,
    ),
    (
        "ledger: without an anchor nothing is assumed to be spent",
        AGENT + "ledger.py",
        '{} if nothing_lost else {"": ExperimentTotal(0, unknown)}',
        "{}",
        CHAIN_TESTS,
    ),
    (
        "ledger: a later schema is read as if it were this one",
        AGENT + "ledger_file.py",
        "        if self.version > SCHEMA_VERSION:",
        "        if False:",
        CHAIN_TESTS,
    ),
    (
        "ledger: a migration takes the operator to know as little as the others",
        AGENT + "ledger_migration.py",
        '        multipliers = {"operator": 0.0, ',
        "        multipliers = {",
        CHAIN_TESTS,
    ),
    (
        "budget: what the operator learns is not added up",
        AGENT + "budget.py",
        '        rule = "max_epsilon_operator_lifetime" if lifetime else "max_epsilon_operator"\n',
        '        if lifetime:\n            return []\n        rule = "max_epsilon_operator"\n',
        CORE_TESTS,
    ),
    (
        "budget: other experiments do not count",
        AGENT + "budget.py",
        "events=[*others, plan]",
        "events=[plan]",
        CORE_TESTS,
    ),
    (
        "policy: read once, at the start",
        AGENT + "policy_file.py",
        "        if self._current is None or seen != self._seen:",
        "        if self._current is None:",
        POLICY_TESTS,
    ),
    (
        "policy: a looser rule holds at once",
        AGENT + "policy_file.py",
        "        effective = stricter(accepted, policy)\n        rules",
        "        effective = policy\n        rules",
        POLICY_TESTS,
    ),
    (
        "policy: tightened and loosened back is not loosened",
        AGENT + "policy_file.py",
        "            self._keep(effective)\n        return effective",
        "        return effective",
        POLICY_TESTS,
    ),
    (
        "policy: the group may write it",
        AGENT + "policy.py",
        "(stat.S_IWOTH | stat.S_IWGRP)",
        "stat.S_IWOTH",
        POLICY_TESTS,
    ),
    (
        "policy: asked only when an experiment is new",
        AGENT + "core.py",
        "        if policy is not None and self._rules is not None:",
        "        if policy is not None and self._rules is not None and experiment.digest() not in self._learners:",
        POLICY_TESTS,
    ),
    (
        "approval: by name, whatever the configuration",
        AGENT + "approvals.py",
        '        return self.approved().get(experiment.name, {}).get("digest") == experiment.digest()',
        "        return experiment.name in self.approved()",
        POLICY_TESTS,
    ),
    (
        "quotas: repeats without end",
        AGENT + "quotas.py",
        "        if repeat and ledger.repeats(experiment) >= policy.max_repeats:",
        "        if False:",
        GATE_TESTS,
    ),
    (
        "quotas: rounds without end",
        AGENT + "quotas.py",
        "        if len(self._computed) >= policy.max_rounds_per_hour:",
        "        if False:",
        GATE_TESTS,
    ),
    (
        "quotas: experiments without end",
        AGENT + "quotas.py",
        "        if experiment not in begun and recent >= policy.max_experiments_per_day:",
        "        if False:",
        GATE_TESTS,
    ),
    (
        "evaluations: without end",
        AGENT + "core.py",
        'policy.metrics == "none" or len(answers) >= policy.max_evaluations',
        'policy.metrics == "none"',
        GATE_TESTS,
    ),
    (
        "evaluations: a stored answer escapes a stricter policy",
        AGENT + "core.py",
        '        metrics = answer["metrics"] if policy is None else policy.released_metrics(answer["metrics"])\n',
        '        metrics = answer["metrics"]\n',
        GATE_TESTS,
    ),
    (
        "replies leave as soon as they are ready",
        AGENT + "core.py",
        "            time.sleep(",
        "            max(",
        GATE_TESTS,
    ),
    (
        "replies tell their time exactly",
        AGENT + "core.py",
        "    return slotted(time.monotonic() - started, SIMULATED_SLOT if policy is None else policy.reply_slot)",
        "    return round(time.monotonic() - started, 3)",
        GATE_TESTS,
    ),
    (
        "audit: a release is not recorded",
        AGENT + "core.py",
        '        self._audit.write(\n            "released",',
        '        AuditLog(None).write(\n            "released",',
        GATE_TESTS,
    ),
    (
        "data set: a second ledger for the same images",
        AGENT + "dataset.py",
        "        if other != own:",
        "        if False:",
        DATASET_TESTS,
    ),
    (
        "data set: changed images pass",
        AGENT + "dataset.py",
        "    if changes.other_images:",
        "    if False:",
        DATASET_TESTS,
    ),
    (
        "data set: an exchanged list of images passes",
        AGENT + "manifest.py",
        "    if manifest is None or manifest.digest() != digest:",
        "    if manifest is None:",
        DATASET_TESTS,
    ),
    (
        "data set: the rule for unreadable images is forgotten",
        AGENT + "dataset.py",
        '    if changes.unreadable and known.rule == "refuse":',
        "    if False:",
        DATASET_TESTS,
    ),
    (
        "data set: two agents on copies of one state folder",
        AGENT + "build.py",
        "        lock.add(registry.hold(ledger.identity))\n",
        "",
        DATASET_TESTS,
    ),
    (
        "a site without the experiment's classes says so",
        "client/src/dpfpl_client/learning/learner.py",
        "        return SiteFeatures(mapped(self.train), mapped",
        "        if not len(mapped(self.train)):\n"
        '            raise ModelError(code="NO_KNOWN_CLASS", message="")\n'
        "        return SiteFeatures(mapped(self.train), mapped",
        CORE_TESTS,
    ),
)
