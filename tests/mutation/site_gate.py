"""Ways to break the site's gate: see mechanism.py for the fields."""

__all__ = ["SITE_GATE"]

CORE_TESTS = "tests/client/agent/test_core.py"
DATASET_TESTS = "tests/client/agent/test_dataset.py"
GATE_TESTS = "tests/client/agent/test_gate.py"
LEDGER_CHAIN_TESTS = "tests/client/agent/test_ledger_chain.py"
POLICY_FILE_TESTS = "tests/client/agent/test_policy_file.py"

SITE_GATE = (
    (
        "ledger: a changed record passes",
        "dpfpl_client.agent.ledger.file:follow",
        "link.hash != chained(previous.hash, link.content)",
        "False",
        (f"{LEDGER_CHAIN_TESTS}::test_F11_a_tampered_record_is_named_and_the_ledger_not_used[one_letter]",),
    ),
    (
        "ledger: the hash leaves the record before it out",
        "dpfpl_client.agent.ledger.file:chained",
        "f'{previous}\\n{content}'",
        "f'\\n{content}'",
        (
            f"{LEDGER_CHAIN_TESTS}::test_F11_a_tampered_record_is_named_and_the_ledger_not_used[middle_removed_and_closed_up]",
        ),
    ),
    (
        "ledger: a removed record passes",
        "dpfpl_client.agent.ledger.file:follow",
        "link.sequence != previous.sequence + 1",
        "False",
        (f"{LEDGER_CHAIN_TESTS}::test_F11_a_tampered_record_is_named_and_the_ledger_not_used[first_removed]",),
    ),
    (
        "ledger: a shorter copy passes",
        "dpfpl_client.agent.ledger.book:Ledger._check_anchor",
        "remembered.sequence > here",
        "False",
        (
            f"{LEDGER_CHAIN_TESTS}::test_F11_records_removed_at_the_end_are_named",
            f"{LEDGER_CHAIN_TESTS}::test_F12_an_old_copy_of_the_state_folder_is_refused",
        ),
    ),
    (
        "ledger: a copy that went on by itself passes",
        "dpfpl_client.agent.ledger.book:Ledger._check_anchor",
        "self._hash_of(remembered.sequence) != remembered.head",
        "False",
        (f"{LEDGER_CHAIN_TESTS}::test_F12_a_copy_that_went_on_by_itself_is_refused",),
    ),
    (
        "ledger: the anchor stays behind",
        "dpfpl_client.agent.ledger.book:Ledger._append",
        "self._anchor.advance(...)",
        "None",
        (f"{LEDGER_CHAIN_TESTS}::test_F12_the_anchor_is_durable_before_reserve_returns",),
    ),
    (
        "ledger: an accepted old copy forgets what was spent since",
        "dpfpl_client.agent.ledger.book:Ledger.accept_rollback",
        "missing.items()",
        "()",
        (f"{LEDGER_CHAIN_TESTS}::test_F12_accepting_an_old_copy_charges_what_was_spent_since",),
    ),
    (
        "ledger: without an anchor nothing is assumed to be spent",
        "dpfpl_client.agent.ledger.book:Ledger.accept_rollback",
        "{} if nothing_lost else _1",
        "{}",
        (
            f"{LEDGER_CHAIN_TESTS}::test_F12_without_an_anchor_all_counts_as_spent_unless_the_administrator_says_otherwise[False]",
        ),
    ),
    (
        "ledger: another schema is read as if it were this one",
        "dpfpl_client.agent.ledger.file:LedgerFile.__init__",
        "self.version not in (0, SCHEMA_VERSION)",
        "False",
        (f"{LEDGER_CHAIN_TESTS}::test_O3_this_program_refuses_another_schema",),
    ),
    (
        "budget: what the operator learns is not added up",
        "dpfpl_client.agent.budget:_rules",
        "rule = 'max_epsilon_operator_lifetime' if lifetime else _1",
        "if lifetime:\n    return []\nrule = _1",
        (f"{CORE_TESTS}::test_A3_what_many_experiments_tell_the_operator_stops_at_its_own_cap",),
    ),
    (
        "budget: other experiments do not count",
        "dpfpl_client.agent.budget:check_budget",
        "[*others, *plan]",
        "plan",
        (f"{CORE_TESTS}::test_A3_the_lifetime_cap_holds_over_experiments_and_restarts",),
    ),
    (
        "policy: read once, at the start",
        "dpfpl_client.agent.policy_file:PolicyFile.current",
        "self._current is None or seen != self._seen",
        "self._current is None",
        (f"{POLICY_FILE_TESTS}::test_O2_a_tightened_rule_holds_at_the_next_message",),
    ),
    (
        "policy: a looser rule holds at once",
        "dpfpl_client.agent.policy_file:PolicyFile._read",
        "stricter(accepted, policy)",
        "policy",
        (f"{POLICY_FILE_TESTS}::test_O2_a_loosened_rule_holds_only_when_accepted_and_the_audit_log_says_who_did",),
    ),
    (
        "policy: tightened and loosened back is not loosened",
        "dpfpl_client.agent.policy_file:PolicyFile._read",
        "self._keep(effective)",
        "None",
        (f"{POLICY_FILE_TESTS}::test_O2_tightened_and_loosened_back_is_loosened",),
    ),
    (
        "policy: the group may write it",
        "dpfpl_client.agent.policy_file:require_protected",
        "stat.S_IWOTH | stat.S_IWGRP",
        "stat.S_IWOTH",
        (f"{POLICY_FILE_TESTS}::test_O1_a_policy_that_others_may_write_is_refused",),
    ),
    (
        "policy: asked only when an experiment is new",
        "dpfpl_client.agent.core:SiteAgent._admit",
        "policy is not None and self._rules is not None",
        "_0 and experiment.digest() not in self._learners",
        (f"{POLICY_FILE_TESTS}::test_O2_a_tightened_rule_holds_at_the_next_message",),
    ),
    (
        "approval: a plan whose trust the server decides is approved as local",
        "dpfpl_client.approval:read_plan",
        "left_open",
        "False",
        ("tests/client/test_gate_cli.py::test_a_plan_whose_trust_the_server_decides_is_not_approved_as_local",),
    ),
    (
        "approval: by name, whatever the configuration",
        "dpfpl_client.agent.policy_file:Approvals.holds",
        "return _1 == experiment.digest()",
        "return experiment.name in self.approved()",
        (f"{POLICY_FILE_TESTS}::test_an_approval_is_of_one_configuration",),
    ),
    (
        "quotas: repeats without end",
        "dpfpl_client.agent.budget:Quotas._check_experiment",
        "repeat and ledger.repeats(experiment) >= policy.max_repeats",
        "False",
        (f"{GATE_TESTS}::test_A4_started_and_aborted_rounds_end_at_the_quota",),
    ),
    (
        "quotas: rounds without end",
        "dpfpl_client.agent.budget:Quotas.take",
        "len(self._computed) >= policy.max_rounds_per_hour",
        "False",
        (f"{GATE_TESTS}::test_A4_rounds_are_limited_by_the_hour_and_stored_answers_are_not",),
    ),
    (
        "quotas: experiments without end",
        "dpfpl_client.agent.budget:Quotas._check_experiment",
        "experiment not in begun and _1",
        "False",
        (f"{GATE_TESTS}::test_A4_experiments_are_limited_by_the_day_over_restarts",),
    ),
    (
        "evaluations: without end",
        "dpfpl_client.agent.core:SiteAgent._evaluate",
        "policy is None or len(answers) < policy.max_evaluations",
        "True",
        (f"{GATE_TESTS}::test_A10_different_evaluations_end_at_the_quota_over_restarts",),
    ),
    (
        "evaluations: a stored answer escapes a stricter policy",
        "dpfpl_client.agent.core:SiteAgent._evaluate",
        "return self._permitted(reply, policy)",
        "return reply",
        (f"{GATE_TESTS}::test_A10_a_stored_answer_obeys_a_stricter_policy",),
    ),
    (
        "audit: a release is not recorded",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._audit.write('released', ...)",
        "None",
        (f"{GATE_TESTS}::test_the_audit_log_says_what_was_decided_and_what_it_cost",),
    ),
    (
        "data set: a second ledger for the same images",
        "dpfpl_client.agent.ledger.dataset:_refuse_known_images",
        "other != own",
        "False",
        (f"{DATASET_TESTS}::test_F13_a_second_state_folder_for_the_same_images_is_refused",),
    ),
    (
        "data set: changed images pass",
        "dpfpl_client.agent.ledger.dataset:_warnings",
        "changes.other_images",
        "False",
        (f"{DATASET_TESTS}::test_F19_changed_images_are_refused_until_registered_under_the_same_ledger",),
    ),
    (
        "data set: an exchanged list of images passes",
        "dpfpl_client.agent.ledger.dataset:registered_manifest",
        "manifest is None or manifest.digest() != _1",
        "manifest is None",
        (f"{DATASET_TESTS}::test_F19_the_manifest_cannot_be_exchanged",),
    ),
    (
        "data set: the rule for unreadable images is forgotten",
        "dpfpl_client.agent.ledger.dataset:_warnings",
        "changes.unreadable and known.rule == 'refuse'",
        "False",
        (f"{DATASET_TESTS}::test_F18_what_breaks_later_is_skipped_or_refused_as_was_decided[refuse]",),
    ),
    (
        "data set: two agents on copies of one state folder",
        "dpfpl_client.agent.build:build_agent",
        "lock.add(registry.hold(ledger.identity))",
        "None",
        (f"{DATASET_TESTS}::test_F13_two_agents_on_copies_of_one_state_folder",),
    ),
    (
        "a site without the experiment's classes says so",
        "dpfpl_client.learning.learner:SiteFeatures.relabelled",
        "return SiteFeatures(mapped(self.train), ...)",
        "if not len(mapped(self.train)):\n    raise ModelError(code='NO_KNOWN_CLASS', message='')\n_0",
        (f"{CORE_TESTS}::test_A10_a_site_without_the_experiments_classes_answers_like_any_other",),
    ),
)
