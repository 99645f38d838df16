"""Ways to claim more privacy than there is: see mechanism.py for the fields."""

__all__ = ["ACCOUNTING"]

ACCOUNTING_TESTS = "tests/common/test_accounting.py"
CALIBRATION_TESTS = "tests/common/test_calibration.py"
PLANNING_TESTS = "tests/common/test_privacy_plan.py"
POLICY_TESTS = "tests/client/agent/test_policy.py"
RESULT_TESTS = "tests/server/test_result.py"

ACCOUNTING = (
    (
        "accounting: a step is a step, however many there are",
        "dpfpl_common.privacy.accounting:_pld_epsilon",
        "_losses(z, q, interval).self_compose(steps)",
        "_losses(z, q, interval).self_compose(min(1, steps))",
        (f"{ACCOUNTING_TESTS}::test_golden_values",),
    ),
    (
        "accounting: sampling amplifies twice",
        "dpfpl_common.privacy.accounting:_losses",
        "_deltas_of_a_step(epsilons, noise_multiplier, sample_rate, removed=_1)",
        "_deltas_of_a_step(epsilons, noise_multiplier, sample_rate ** 2, removed=_1)",
        (f"{ACCOUNTING_TESTS}::test_golden_values",),
    ),
    (
        "accounting: without sampling the steps of a run are one",
        "dpfpl_common.privacy.accounting:_gaussian_epsilon",
        "steps / noise_multiplier ** 2",
        "1 / noise_multiplier ** 2",
        (f"{ACCOUNTING_TESTS}::test_without_sampling_epsilon_is_the_closed_form[0.001-40-2.5]",),
    ),
    (
        "accounting: a cap that is passed by a tenth holds",
        "dpfpl_common.privacy.accounting:exceeds",
        "coarse > cap",
        "coarse > 1.1 * cap",
        (f"{ACCOUNTING_TESTS}::test_a_cap_is_held_exactly_whichever_grid_decides",),
    ),
    (
        "accounting: a cap without sampling is passed by a little",
        "dpfpl_common.privacy.accounting:_gaussian_delta",
        "below - math.exp(epsilon) * above",
        "(below - math.exp(epsilon) * above) * 0.9999",
        (f"{ACCOUNTING_TESTS}::test_without_sampling_a_cap_is_held_exactly_by_a_closed_form",),
    ),
    (
        "accounting: without sampling releases count once at a cap",
        "dpfpl_common.privacy.accounting:_gaussian_delta",
        "steps / noise_multiplier ** 2",
        "1 / noise_multiplier ** 2",
        (f"{ACCOUNTING_TESTS}::test_without_sampling_epsilon_is_the_closed_form[0.001-40-2.5]",),
    ),
    (
        "calibration: from below the target's noise",
        "dpfpl_common.privacy.accounting:calibrate_noise_multiplier",
        "math.ceil(high * unit)",
        "math.floor(0.99 * low * unit)",
        (f"{PLANNING_TESTS}::test_the_target_holds_and_is_nearly_used_up",),
    ),
    (
        "accounting: rounding over many steps is nobody's",
        "dpfpl_common.privacy.accounting:_pld_epsilon",
        "delta - ROUNDING_OF_A_STEP * composed",
        "delta",
        (f"{ACCOUNTING_TESTS}::test_P7_the_grid_of_a_step_is_dp_accountings_own[releases4-1e-09]",),
    ),
    (
        "a given noise multiplier is held to no range",
        "dpfpl_common.privacy_plan:resolve_noise",
        "event.noise_multiplier > 0",
        "False",
        (f"{CALIBRATION_TESTS}::test_a_given_multiplier_is_held_to_the_same_range",),
    ),
    (
        "a ledger beyond the range has a number all the same",
        "dpfpl_common.privacy.accounting:_epsilon",
        "_inexact(delta, sum(steps for _, _, steps in releases)) is not None",
        "False",
        (f"{CALIBRATION_TESTS}::test_a_ledger_beyond_the_range_has_no_number",),
    ),
    (
        "separate clipping is paid for as if joint",
        "dpfpl_common.privacy_plan:planned_events",
        "z / math.sqrt(1 + personal_blocks)",
        "z",
        (f"{PLANNING_TESTS}::test_separate_clipping_pays_for_every_block",),
    ),
    (
        "separate clipping: one block is not accounted for",
        "dpfpl_common.privacy_plan:_needed_multiplier",
        "separate_blocks(experiment)",
        "max(1, _0 - 1)",
        (f"{PLANNING_TESTS}::test_separate_clipping_pays_for_every_block",),
    ),
    (
        "one_shot: all the data are released, and a sample is charged",
        "dpfpl_common.privacy_plan:planned_events",
        "1.0 if one_shot else privacy.sample_rate",
        "privacy.sample_rate",
        (f"{PLANNING_TESTS}::test_one_shot_is_one_release_without_sampling_however_long_the_run",),
    ),
    (
        "one_shot: nothing is charged",
        "dpfpl_common.privacy_plan:planned_events",
        "min(1, count)",
        "0",
        (f"{PLANNING_TESTS}::test_one_shot_is_one_release_without_sampling_however_long_the_run",),
    ),
    (
        "the paper's nominal epsilon passes for the honest one",
        "dpfpl_common.policy:violations",
        "privacy.accounting != 'honest'",
        "False",
        (f"{POLICY_TESTS}::test_the_papers_nominal_epsilon_is_refused_even_by_the_weakest_policy",),
    ),
    (
        "policy: an experiment may cost what it likes",
        "dpfpl_common.policy:violations",
        "exceeds([capped_event(experiment)], ...)",
        "False",
        (
            f"{POLICY_TESTS}::test_each_rule_alone_refuses_under_its_own_code[EPSILON_OVER_CAP-max_epsilon_per_experiment-0.001]",
        ),
    ),
    (
        "policy: next to no noise passes",
        "dpfpl_common.policy:violations",
        "_1 < policy.min_noise_multiplier",
        "False",
        (f"{POLICY_TESTS}::test_each_rule_alone_refuses_under_its_own_code",),
    ),
    (
        "accuracies leave exactly where the policy says coarse",
        "dpfpl_common.policy:Policy.released_metrics",
        "{name: _1 for name, value in metrics.items()}",
        "dict(metrics)",
        (f"{POLICY_TESTS}::test_metrics_leave_rounded_or_not_at_all",),
    ),
    (
        "the result states the target instead of what was spent",
        "dpfpl_server.runs.result:privacy_statement",
        "json_epsilon(_1)",
        "experiment.privacy.target_epsilon or _0",
        (f"{RESULT_TESTS}::test_paper_accounting_states_its_nominal_epsilon_beside_the_honest_ones",),
    ),
)
