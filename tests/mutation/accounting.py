"""Ways to claim more privacy than there is: name, file, text there, what it becomes, tests."""

__all__ = ["ACCOUNTING"]

ACCOUNTANT = "common/src/dpfpl_common/privacy/accounting.py"
PERMIT = "common/src/dpfpl_common/policy.py"
PLANNING = "common/src/dpfpl_common/privacy_plan.py"
TRUST = "common/src/dpfpl_common/privacy_plan.py"
ACCOUNTING_TESTS = "tests/common/test_accounting.py"
PLANNING_TESTS = "tests/common/test_planning.py"
POLICY_TESTS = "tests/client/agent/test_policy.py"
RESULT_TESTS = "tests/server/test_result.py"

ACCOUNTING = (
    (
        "accounting: a step is a step, however many there are",
        ACCOUNTANT,
        "SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian), steps)",
        "SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian), min(1, steps))",
        (f"{ACCOUNTING_TESTS}::test_golden_values",),
    ),
    (
        "accounting: sampling amplifies twice",
        ACCOUNTANT,
        "dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian)",
        "dp_accounting.PoissonSampledDpEvent(sample_rate**2, gaussian)",
        (f"{ACCOUNTING_TESTS}::test_golden_values",),
    ),
    (
        "accounting: without sampling the steps of a run are one",
        ACCOUNTANT,
        "GaussianDpEvent(noise_multiplier / math.sqrt(steps))",
        "GaussianDpEvent(noise_multiplier)",
        (f"{ACCOUNTING_TESTS}::test_without_sampling_epsilon_is_the_closed_form[0.001-40-2.5]",),
    ),
    (
        "accounting: a cap that is passed by a tenth holds",
        ACCOUNTANT,
        "    if coarse <= cap:\n",
        "    if coarse <= 1.1 * cap:\n",
        (f"{ACCOUNTING_TESTS}::test_a_cap_is_held_exactly_whichever_grid_decides",),
    ),
    (
        "calibration: from below the target's noise",
        ACCOUNTANT,
        "            high = middle\n        else:\n            low = middle\n    return high\n",
        "            high = middle\n        else:\n            low = middle\n    return 0.99 * low\n",
        (f"{PLANNING_TESTS}::test_the_target_holds_and_is_nearly_used_up",),
    ),
    (
        "separate clipping is paid for as if joint",
        TRUST,
        "    joint = z / math.sqrt(1 + personal_blocks)\n",
        "    joint = z\n",
        (f"{PLANNING_TESTS}::test_separate_clipping_pays_for_every_block",),
    ),
    (
        "separate clipping: one block is not accounted for",
        PLANNING,
        "joint * math.sqrt(separate_blocks(experiment))",
        "joint * math.sqrt(max(1, separate_blocks(experiment) - 1))",
        (f"{PLANNING_TESTS}::test_separate_clipping_pays_for_every_block",),
    ),
    (
        "one_shot: all the data are released, and a sample is charged",
        TRUST,
        "            sample_rate=1.0 if one_shot else privacy.sample_rate,\n",
        "            sample_rate=privacy.sample_rate,\n",
        (f"{PLANNING_TESTS}::test_one_shot_is_one_release_without_sampling_however_long_the_run",),
    ),
    (
        "one_shot: nothing is charged",
        TRUST,
        "            steps=min(1, count) if one_shot else count,\n",
        "            steps=0 if one_shot else count,\n",
        (f"{PLANNING_TESTS}::test_one_shot_is_one_release_without_sampling_however_long_the_run",),
    ),
    (
        "the paper's nominal epsilon passes for the honest one",
        PERMIT,
        '    if privacy.accounting != "honest":\n',
        "    if False:\n",
        (f"{POLICY_TESTS}::test_the_papers_nominal_epsilon_is_refused_even_by_the_weakest_policy",),
    ),
    (
        "policy: an experiment may cost what it likes",
        PERMIT,
        "    if exceeds([capped_event(experiment)], policy.delta, policy.max_epsilon_per_experiment):\n",
        "    if False:\n",
        (
            f"{POLICY_TESTS}::test_each_rule_alone_refuses_under_its_own_code[EPSILON_OVER_CAP-max_epsilon_per_experiment-0.001]",
        ),
    ),
    (
        "policy: next to no noise passes",
        PERMIT,
        "    if (privacy.noise_multiplier or 0.0) < policy.min_noise_multiplier:\n",
        "    if False:\n",
        (f"{POLICY_TESTS}::test_each_rule_alone_refuses_under_its_own_code",),
    ),
    (
        "accuracies leave exactly where the policy says coarse",
        PERMIT,
        "                return {name: round(round(value / COARSE_STEP) * COARSE_STEP, 2) "
        "for name, value in metrics.items()}\n",
        "                return dict(metrics)\n",
        (f"{POLICY_TESTS}::test_metrics_leave_rounded_or_not_at_all",),
    ),
    (
        "the result states the target instead of what was spent",
        "server/src/dpfpl_server/runs/result.py",
        '"epsilon": json_epsilon(epsilon([event], delta)),',
        '"epsilon": experiment.privacy.target_epsilon or json_epsilon(epsilon([event], delta)),',
        (f"{RESULT_TESTS}::test_paper_accounting_states_its_nominal_epsilon_beside_the_honest_ones",),
    ),
)
