"""Ways to break the site's gate: name, file, text there, what it becomes, tests."""

__all__ = ["SITE_GATE"]

CHAIN = "client/src/dpfpl_client/agent/ledger/file.py"
CORE = "client/src/dpfpl_client/agent/core.py"
CORE_TESTS = "tests/client/agent/test_core.py"
DATASET = "client/src/dpfpl_client/agent/ledger/dataset.py"
DATASET_TESTS = "tests/client/agent/test_dataset.py"
GATE_TESTS = "tests/client/agent/test_gate.py"
LEARNER = "client/src/dpfpl_client/learning/learner.py"
LEDGER = "client/src/dpfpl_client/agent/ledger/book.py"
LEDGER_CHAIN_TESTS = "tests/client/agent/test_ledger_chain.py"
LEDGER_FILE = "client/src/dpfpl_client/agent/ledger/file.py"
POLICY_FILE = "client/src/dpfpl_client/agent/policy_file.py"
POLICY_FILE_TESTS = "tests/client/agent/test_policy_file.py"
QUOTAS = "client/src/dpfpl_client/agent/budget.py"

SITE_GATE = (
    (
        "ledger: a changed record passes",
        CHAIN,
        "        if link.hash != chained(previous.hash, link.content):",
        "        if False:",
        (f"{LEDGER_CHAIN_TESTS}::test_F11_a_tampered_record_is_named_and_the_ledger_not_used[one_letter]",),
    ),
    (
        "ledger: the hash leaves the record before it out",
        CHAIN,
        'f"{previous}\\n{content}"',
        'f"\\n{content}"',
        (
            f"{LEDGER_CHAIN_TESTS}::test_F11_a_tampered_record_is_named_and_the_ledger_not_used[middle_removed_and_closed_up]",
        ),
    ),
    (
        "ledger: a removed record passes",
        CHAIN,
        "        if link.sequence != previous.sequence + 1:",
        "        if False:",
        (f"{LEDGER_CHAIN_TESTS}::test_F11_a_tampered_record_is_named_and_the_ledger_not_used[first_removed]",),
    ),
    (
        "ledger: a shorter copy passes",
        LEDGER,
        "        elif remembered.sequence > here:",
        "        elif False:",
        (
            f"{LEDGER_CHAIN_TESTS}::test_F11_records_removed_at_the_end_are_named",
            f"{LEDGER_CHAIN_TESTS}::test_F12_an_old_copy_of_the_state_folder_is_refused",
        ),
    ),
    (
        "ledger: a copy that went on by itself passes",
        LEDGER,
        "        elif self._hash_of(remembered.sequence) != remembered.head:",
        "        elif False:",
        (f"{LEDGER_CHAIN_TESTS}::test_F12_a_copy_that_went_on_by_itself_is_refused",),
    ),
    (
        "ledger: the anchor stays behind",
        LEDGER,
        "            self._anchor.advance(self.snapshot())\n        return sequence",
        "            pass\n        return sequence",
        (f"{LEDGER_CHAIN_TESTS}::test_F12_the_anchor_is_durable_before_reserve_returns",),
    ),
    (
        "ledger: an accepted old copy forgets what was spent since",
        LEDGER,
        "            for name, total in missing.items():\n",
        "            for name, total in ():\n",
        (f"{LEDGER_CHAIN_TESTS}::test_F12_accepting_an_old_copy_charges_what_was_spent_since",),
    ),
    (
        "ledger: without an anchor nothing is assumed to be spent",
        LEDGER,
        '{} if nothing_lost else {"": ExperimentTotal(0, unknown)}',
        "{}",
        (
            f"{LEDGER_CHAIN_TESTS}::test_F12_without_an_anchor_all_counts_as_spent_unless_the_administrator_says_otherwise[False]",
        ),
    ),
    (
        "ledger: a later schema is read as if it were this one",
        LEDGER_FILE,
        "        if self.version > SCHEMA_VERSION:",
        "        if False:",
        (f"{LEDGER_CHAIN_TESTS}::test_O3_this_program_refuses_a_later_schema",),
    ),
    (
        "ledger: a migration takes the operator to know as little as the others",
        "client/src/dpfpl_client/agent/ledger/book.py",
        '        multipliers = {"operator": 0.0, ',
        "        multipliers = {",
        (f"{LEDGER_CHAIN_TESTS}::test_O3_without_it_the_operator_is_taken_to_know_everything",),
    ),
    (
        "budget: what the operator learns is not added up",
        "client/src/dpfpl_client/agent/budget.py",
        '        rule = "max_epsilon_operator_lifetime" if lifetime else "max_epsilon_operator"\n',
        '        if lifetime:\n            return []\n        rule = "max_epsilon_operator"\n',
        (f"{CORE_TESTS}::test_A3_what_many_experiments_tell_the_operator_stops_at_its_own_cap",),
    ),
    (
        "budget: other experiments do not count",
        "client/src/dpfpl_client/agent/budget.py",
        "events=[*others, plan]",
        "events=[plan]",
        (f"{CORE_TESTS}::test_A3_the_lifetime_cap_holds_over_experiments_and_restarts",),
    ),
    (
        "policy: read once, at the start",
        POLICY_FILE,
        "        if self._current is None or seen != self._seen:",
        "        if self._current is None:",
        (f"{POLICY_FILE_TESTS}::test_O2_a_tightened_rule_holds_at_the_next_message",),
    ),
    (
        "policy: a looser rule holds at once",
        POLICY_FILE,
        "        effective = stricter(accepted, policy)\n        rules",
        "        effective = policy\n        rules",
        (f"{POLICY_FILE_TESTS}::test_O2_a_loosened_rule_holds_only_when_accepted_and_the_audit_log_says_who_did",),
    ),
    (
        "policy: tightened and loosened back is not loosened",
        POLICY_FILE,
        "            self._keep(effective)\n        return effective",
        "        return effective",
        (f"{POLICY_FILE_TESTS}::test_O2_tightened_and_loosened_back_is_loosened",),
    ),
    (
        "policy: the group may write it",
        POLICY_FILE,
        "(stat.S_IWOTH | stat.S_IWGRP)",
        "stat.S_IWOTH",
        (f"{POLICY_FILE_TESTS}::test_O1_a_policy_that_others_may_write_is_refused",),
    ),
    (
        "policy: asked only when an experiment is new",
        CORE,
        "        if policy is not None and self._rules is not None:",
        "        if policy is not None and self._rules is not None and experiment.digest() not in self._learners:",
        (f"{POLICY_FILE_TESTS}::test_O2_a_tightened_rule_holds_at_the_next_message",),
    ),
    (
        "approval: by name, whatever the configuration",
        "client/src/dpfpl_client/agent/policy_file.py",
        '        return self.approved().get(experiment.name, {}).get("digest") == experiment.digest()',
        "        return experiment.name in self.approved()",
        (f"{POLICY_FILE_TESTS}::test_an_approval_is_of_one_configuration",),
    ),
    (
        "quotas: repeats without end",
        QUOTAS,
        "        if repeat and ledger.repeats(experiment) >= policy.max_repeats:",
        "        if False:",
        (f"{GATE_TESTS}::test_A4_started_and_aborted_rounds_end_at_the_quota",),
    ),
    (
        "quotas: rounds without end",
        QUOTAS,
        "        if len(self._computed) >= policy.max_rounds_per_hour:",
        "        if False:",
        (f"{GATE_TESTS}::test_A4_rounds_are_limited_by_the_hour_and_stored_answers_are_not",),
    ),
    (
        "quotas: experiments without end",
        QUOTAS,
        "        if experiment not in begun and recent >= policy.max_experiments_per_day:",
        "        if False:",
        (f"{GATE_TESTS}::test_A4_experiments_are_limited_by_the_day_over_restarts",),
    ),
    (
        "evaluations: without end",
        CORE,
        'policy.metrics == "none" or len(answers) >= policy.max_evaluations',
        'policy.metrics == "none"',
        (f"{GATE_TESTS}::test_A10_different_evaluations_end_at_the_quota_over_restarts",),
    ),
    (
        "evaluations: a stored answer escapes a stricter policy",
        CORE,
        '        metrics = answer["metrics"] if policy is None else policy.released_metrics(answer["metrics"])\n',
        '        metrics = answer["metrics"]\n',
        (f"{GATE_TESTS}::test_A10_a_stored_answer_obeys_a_stricter_policy",),
    ),
    (
        "replies leave as soon as they are ready",
        CORE,
        "            time.sleep(",
        "            max(",
        (f"{GATE_TESTS}::test_A10_replies_come_at_multiples_of_the_slot_and_say_no_more",),
    ),
    (
        "replies tell their time exactly",
        CORE,
        "    return slotted(time.monotonic() - started, SIMULATED_SLOT if policy is None else policy.reply_slot)",
        "    return round(time.monotonic() - started, 3)",
        (f"{GATE_TESTS}::test_A10_replies_come_at_multiples_of_the_slot_and_say_no_more",),
    ),
    (
        "audit: a release is not recorded",
        CORE,
        '        self._audit.write(\n            "released",',
        '        AuditLog(None).write(\n            "released",',
        (f"{GATE_TESTS}::test_the_audit_log_says_what_was_decided_and_what_it_cost",),
    ),
    (
        "data set: a second ledger for the same images",
        DATASET,
        "        if other != own:",
        "        if False:",
        (f"{DATASET_TESTS}::test_F13_a_second_state_folder_for_the_same_images_is_refused",),
    ),
    (
        "data set: changed images pass",
        DATASET,
        "    if changes.other_images:",
        "    if False:",
        (f"{DATASET_TESTS}::test_F19_changed_images_are_refused_until_registered_under_the_same_ledger",),
    ),
    (
        "data set: an exchanged list of images passes",
        "client/src/dpfpl_client/agent/ledger/dataset.py",
        "    if manifest is None or manifest.digest() != digest:",
        "    if manifest is None:",
        (f"{DATASET_TESTS}::test_F19_the_manifest_cannot_be_exchanged",),
    ),
    (
        "data set: the rule for unreadable images is forgotten",
        DATASET,
        '    if changes.unreadable and known.rule == "refuse":',
        "    if False:",
        (f"{DATASET_TESTS}::test_F18_what_breaks_later_is_skipped_or_refused_as_was_decided[refuse]",),
    ),
    (
        "data set: two agents on copies of one state folder",
        "client/src/dpfpl_client/agent/build.py",
        "        lock.add(registry.hold(ledger.identity))\n",
        "",
        (f"{DATASET_TESTS}::test_F13_two_agents_on_copies_of_one_state_folder",),
    ),
    (
        "a site without the experiment's classes says so",
        LEARNER,
        "        return SiteFeatures(mapped(self.train), mapped",
        "        if not len(mapped(self.train)):\n"
        '            raise ModelError(code="NO_KNOWN_CLASS", message="")\n'
        "        return SiteFeatures(mapped(self.train), mapped",
        (f"{CORE_TESTS}::test_A10_a_site_without_the_experiments_classes_answers_like_any_other",),
    ),
)
