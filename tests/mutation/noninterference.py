"""Ways for a site's examples to show around the mechanism: see mechanism.py for the fields."""

__all__ = ["NONINTERFERENCE"]

ACCOUNTING_TESTS = "tests/common/test_accounting.py"
BOUNDS_TESTS = "tests/client/noninterference/test_bounds.py"
COUNTS_TESTS = "tests/common/test_counts.py"
DIVISION_TESTS = "tests/client/noninterference/test_division.py"
GRADIENTS_TESTS = "tests/client/learning/test_gradients.py"
FOLDER_TESTS = "tests/client/noninterference/test_folder.py"
GATE_TESTS = "tests/client/agent/test_gate.py"
IMAGES_TESTS = "tests/client/learning/test_image_tower.py"
PRECISION_TESTS = "tests/client/learning/generative/test_precision.py"
QUESTIONS_TESTS = "tests/client/noninterference/test_questions.py"
RESULT_TESTS = "tests/server/test_result.py"
SCORES_TESTS = "tests/client/agent/test_scores.py"
SPLIT_TESTS = "tests/client/data/test_data_split.py"
USE_TESTS = "tests/client/noninterference/test_use.py"

NONINTERFERENCE = (
    (
        "a site refuses an experiment that does not know one of its classes",
        "dpfpl_client.agent.core:SiteAgent._bind",
        "_LOG.warning('%s: %s', experiment.name, warning)",
        "raise RefusedError(code='UNKNOWN_CLASS', message=warning, advice='')",
        (f"{FOLDER_TESTS}::test_ni1_neighbouring_folders_look_the_same[first of a class nobody names-noised]",),
    ),
    (
        "a site refuses an experiment whose answers are too short for one of its own",
        "dpfpl_client.agent.core:SiteAgent._bind",
        "_LOG.warning('%s: %s', experiment.name, warning)",
        "raise RefusedError(code='ANSWER_TOO_LONG', message=warning, advice='')",
        (f"{QUESTIONS_TESTS}::test_ni2_neighbouring_questions_look_the_same[an answer that is too long-noised]",),
    ),
    (
        "scores: a count without noise",
        "dpfpl_common.privacy.counts:noised_counts",
        "noise.add(totals, stddev)",
        "np.append(totals[:1], noise.add(totals[1:], stddev))",
        (f"{COUNTS_TESTS}::test_the_noise_has_the_charged_deviation[1.0-True]",),
    ),
    (
        "scores: noise for one candidate, whatever their number",
        "dpfpl_common.privacy.counts:count_noise_stddev",
        "noise_multiplier * math.sqrt(candidates + 1)",
        "noise_multiplier",
        (
            f"{COUNTS_TESTS}::test_intervals_cover_the_true_share_and_the_true_gain[0.62-4-112]",
            f"{COUNTS_TESTS}::test_the_noise_has_the_charged_deviation[1.0-True]",
            f"{COUNTS_TESTS}::test_the_stated_deviation_is_the_sensitivity",
        ),
    ),
    (
        "scores: what lies outside 0 and 1 counts as it is",
        "dpfpl_common.privacy.counts:noised_counts",
        "np.clip(_1, 0.0, 1.0)",
        "np.nan_to_num(np.asarray(right, dtype=np.float64), nan=0.0, posinf=1.0)",
        (f"{COUNTS_TESTS}::test_NI4_one_example_moves_the_counts_by_at_most_the_stated_bound_and_no_other_matters",),
    ),
    (
        "scores: released before they are charged",
        "dpfpl_client.agent.core:SiteAgent._scores",
        "sequence = _1",
        "sequence = 1",
        (f"{SCORES_TESTS}::test_scores_are_released_once_and_repeated_from_the_store",),
    ),
    (
        "scores: another prompt gets a second count",
        "dpfpl_client.agent.core:SiteAgent._scores",
        "charge is not None and charge.request_digest != asked",
        "False",
        (f"{SCORES_TESTS}::test_scores_are_released_once_and_repeated_from_the_store",),
    ),
    (
        "division: a copy in train takes the example out of test and into train",
        "dpfpl_client.data.split:split_items",
        "len(sides) > 1",
        "len(sides) > 1 and 'train' not in sides",
        (
            f"{SPLIT_TESTS}::test_a_copy_on_the_other_side_takes_an_example_away_and_brings_none",
            f"{DIVISION_TESTS}::test_ni4_csv",
        ),
    ),
    (
        "division: the drawn side looks at how many images there are",
        "dpfpl_client.data.split:split_items",
        "drawn_split(digest, test_fraction, seed)",
        "drawn_split(f'{digest}{len(digested)}', test_fraction, seed)",
        (f"{SPLIT_TESTS}::test_adding_images_moves_no_other", f"{DIVISION_TESTS}::test_ni4_csv"),
    ),
    (
        "division: of copies under two labels the first counts",
        "dpfpl_client.data.split:split_items",
        "len(labels) > 1",
        "False",
        (f"{DIVISION_TESTS}::test_ni4_csv",),
    ),
    (
        "an exact accuracy leaves a site whose data are not public",
        "dpfpl_client.agent.core:SiteAgent._permitted",
        "policy.released_metrics(reply.metrics) if self._public else {}",
        "policy.released_metrics(reply.metrics)",
        (
            f"{SCORES_TESTS}::test_NI6_a_repeated_round_tells_no_more_than_the_policy_of_today",
            f"{SCORES_TESTS}::test_NI3_no_policy_lets_an_exact_accuracy_leave_a_site_whose_data_are_not_public",
        ),
    ),
    (
        "a stored answer is as it was, whatever the policy says now",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._permitted(known, policy)",
        "known",
        (f"{SCORES_TESTS}::test_NI6_a_repeated_round_tells_no_more_than_the_policy_of_today",),
    ),
    (
        "the names of accuracies depend on the data of a site that is not public",
        "dpfpl_client.agent.core:SiteAgent._metrics",
        "policy is not None and (not self._public or policy.metrics not in EXACT_METRICS)",
        "policy is not None and policy.metrics == 'none'",
        (f"{SCORES_TESTS}::test_NI3_no_policy_computes_an_exact_accuracy_of_data_that_are_not_public",),
    ),
    (
        "the names of accuracies of a deployed site tell which classes it lacks",
        "dpfpl_client.learning.evidence:accuracies",
        "len(others) and unseen.any()",
        "unseen.any()",
        (f"{SCORES_TESTS}::test_NI3_the_names_of_accuracies_do_not_tell_which_classes_are_trained_on[exact]",),
    ),
    (
        "in bfloat16 examples are computed side by side",
        "dpfpl_client.models.generative.language:LanguageModel.examples_within",
        "self.singly",
        "False",
        (f"{PRECISION_TESTS}::test_ni10_examples_more_change_no_bit_of_what_the_others_add[llava]",),
    ),
    (
        "rounded gradients are computed as many at once as there are",
        "dpfpl_client.models.class_scorer:per_example_gradients",
        "not coarse",
        "True",
        (f"{GRADIENTS_TESTS}::test_NI10_one_example_more_changes_no_bit_of_what_the_others_add",),
    ),
    (
        "image features are computed as many at once as there are",
        "dpfpl_client.models.image_tower:ImageTower.features",
        "part + part[-1:] * (number - len(part))",
        "part",
        (f"{IMAGES_TESTS}::test_NI10_a_pass_has_one_shape",),
    ),
    (
        "where the place in a pass matters, pictures go side by side all the same",
        "dpfpl_client.models.image_tower:ImageTower._same_bits",
        "all(torch.equal(row, expected) for row in rows)",
        "True",
        (f"{IMAGES_TESTS}::test_NI10_where_the_place_in_a_pass_matters_pictures_go_one_at_a_time",),
    ),
    (
        "many pictures go together although each alone has other bits",
        "dpfpl_client.models.image_tower:ImageTower._same_bits",
        "self._pass([picture])[0] if alone else rows[0]",
        "rows[0]",
        (f"{IMAGES_TESTS}::test_NI10_many_go_through_a_large_tower_together_only_with_the_bits_of_each_alone[False]",),
    ),
    (
        "time: an answer leaves when it is ready",
        "dpfpl_client.agent.pace:Pace.due",
        "return self._started + pace, stretched",
        "return time.monotonic(), stretched",
        (f"{GATE_TESTS}::test_NI5_every_answer_of_an_experiment_takes_the_rehearsed_time",),
    ),
    (
        "time: a stored answer leaves at once, however long ago it left first",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._again = digest == self._left",
        "self._again = True",
        (f"{GATE_TESTS}::test_NI5_every_answer_of_an_experiment_takes_the_rehearsed_time",),
    ),
    (
        "time: a refusal leaves when it is ready",
        "dpfpl_client.agent.pace:Pace.slot",
        "self._started + pace",
        "self._started",
        (f"{GATE_TESTS}::test_NI5_a_refusal_takes_the_slot",),
    ),
    (
        "time: a late refusal leaves when it is ready",
        "dpfpl_client.agent.pace:Pace.slot",
        "pace *= 2.0",
        "pace = passed",
        (f"{GATE_TESTS}::test_NI5_a_late_refusal_takes_the_slot_twice_as_often_as_is_enough",),
    ),
    (
        "a version tells the exact shares of classes",
        "dpfpl_client.use.prompt:_learned",
        "[choice.pool]",
        "[choice.pool, choice.shares]",
        (f"{USE_TESTS}::test_ni7_no_byte_of_an_export_depends_on_what_a_site_keeps_of_its_exact_images",),
    ),
    (
        "features are gathered before a refusal",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._admit(experiment, policy)",
        "self._admit(experiment, policy)\nself._learner(experiment)",
        ("tests/client/agent/test_core.py::test_ni5_no_feature_is_gathered_for_an_experiment_that_is_refused",),
    ),
    (
        "a vote is free although the ledger may have forgotten one",
        "dpfpl_client.agent.core:SiteAgent._cost",
        "paid and votes and self._ledger.accepted",
        "False",
        ("tests/client/agent/test_core.py::test_a_vote_after_an_old_ledger_was_accepted_is_paid_for",),
    ),
    (
        "division: of a table's lines on two sides the first counts",
        "dpfpl_client.data.tables:_said",
        "f'{item.label!r} in {item.split}'",
        "repr(item.label)",
        (
            "tests/client/data/test_data_paths.py::test_ni4_one_line_more_changes_one_part_by_at_most_one_image[test-train]",
        ),
    ),
    (
        "time: an answer that is late leaves when it is ready",
        "dpfpl_client.agent.pace:Pace.due",
        "pace, stretched = (2.0 * pace, True)",
        "pace, stretched = (passed, True)",
        (f"{GATE_TESTS}::test_NI5_a_run_that_cannot_keep_its_time_is_stretched_for_good_and_does_not_say_by_how_much",),
    ),
    (
        "H with K = 0 counts a site's own share",
        "dpfpl_common.experiment:Experiment.honest_shares",
        "max(1, self.privacy.tolerated_colluders)",
        "self.privacy.tolerated_colluders",
        (f"{BOUNDS_TESTS}::test_ni9_a_sites_own_share_never_counts_even_where_nobody_colludes[2]",),
    ),
    (
        "the sum of a large site is not held below the server's cap",
        "dpfpl_client.learning.step:BlockDPOptimizer.clip_and_accumulate",
        "min(1.0, _1)",
        "1.0",
        (f"{BOUNDS_TESTS}::test_ni11_an_honest_site_of_any_size_stays_below_the_servers_cap[5000-distributed]",),
    ),
    (
        "sums of floats instead of whole numbers",
        "dpfpl_common.privacy.clipping:grid_sum",
        "np.trunc(_1).astype(np.int64)",
        "(contributions / (bound * GRAIN))",
        (f"{BOUNDS_TESTS}::test_ni10_what_an_example_adds_is_the_same_to_the_bit_whatever_the_others_are[joint]",),
    ),
    (
        "parallel composition is claimed for parts that overlap",
        "dpfpl_client.agent.ledger.book:LedgerState.apply",
        "record.get('moved')",
        "False",
        (f"{SCORES_TESTS}::test_an_example_that_changes_its_part_ends_parallel_composition",),
    ),
    (
        "parallel composition: what is about both parts counts for one",
        "dpfpl_common.privacy.accounting:_about",
        "e.part in parts",
        "e.part == parts[0]",
        (f"{SCORES_TESTS}::test_an_example_that_changes_its_part_ends_parallel_composition",),
    ),
    (
        "scores of many experiments cost as much as one",
        "dpfpl_common.privacy.accounting:_by_part",
        "_about(events, HELD_BACK, BOTH_PARTS)",
        "()",
        (f"{SCORES_TESTS}::test_each_part_has_the_lifetimes_sum_of_its_own_and_the_cap_holds_for_both",),
    ),
    (
        "scores have half the noise that they are charged for",
        "dpfpl_common.privacy_plan:score_noise_multiplier",
        "return event.noise_multiplier",
        "return event.noise_multiplier / 2",
        (f"{COUNTS_TESTS}::test_scores_cost_what_training_costs_and_the_pair_no_more[privacy2]",),
    ),
    (
        "evaluations under new names are never too many",
        "dpfpl_client.agent.budget:Quotas.take",
        "ledger.evaluation_count >= policy.max_evaluations_lifetime",
        "False",
        (f"{SCORES_TESTS}::test_NI14_evaluations_under_ever_new_names_end_at_the_lifetimes_count",),
    ),
    (
        "what is used is not asked of the policy",
        "dpfpl_client.agent.policy_file:check_use",
        "permit(policy, experiment, _1)",
        "None",
        (f"{USE_TESTS}::test_ni7_a_prompt_that_the_policy_no_longer_admits_is_not_used",),
    ),
    (
        "what single messages hold is published under distributed trust",
        "dpfpl_server.runs.result:_published",
        "experiment.privacy.trust == 'local'",
        "True",
        (f"{RESULT_TESTS}::test_NI8_where_only_sums_carry_the_whole_noise_nothing_of_a_single_message_is_published",),
    ),
    (
        "a picture edited into the other part is a new example",
        "dpfpl_client.agent.ledger.dataset:register_dataset",
        "_edited_into_the_other_part(state, ledger, manifest)",
        "0",
        (
            "tests/client/agent/test_dataset.py::"
            "test_a_picture_that_was_edited_into_the_other_part_ends_parallel_composition[others-test-1]",
        ),
    ),
    (
        "filter: an experiment that was admitted as the only one counts as far as it ran",
        "dpfpl_client.agent.ledger.book:Ledger.events_of_others",
        "self._known.events(...)",
        "self._known.events(lambda name: name != experiment, adversary)",
        (
            "tests/client/agent/test_core.py::test_NI12_an_experiment_that_was_admitted_as_the_only_one_counts_whole_however_little_ran",
        ),
    ),
    (
        "two filters have the whole of delta each",
        "dpfpl_common.privacy.accounting:exceeds_adaptively",
        "delta /= 2",
        "pass",
        (
            "tests/client/agent/test_scores.py::"
            "test_each_part_has_the_lifetimes_sum_of_its_own_and_the_cap_holds_for_both",
        ),
    ),
    (
        "scores: the usual mix is the exact shares of the training images",
        "dpfpl_client.learning.learner:PromptLearner._right",
        "shares_from(state.class_sums, total, noise_multiplier)",
        "self.label_shares",
        (
            "tests/bench/test_evidence_federation.py::"
            "test_the_plain_text_is_counted_as_it_is_used_with_a_mix_that_was_read_off_noised_class_sums",
        ),
    ),
    (
        "scores: the plain text is counted without the mix",
        "dpfpl_client.learning.learner:PromptLearner._right",
        "site_head(vectors, shares, self._experiment.prompt.usual_mix)",
        "site_head(vectors, shares, 0.0)",
        (
            "tests/bench/test_evidence_federation.py::"
            "test_the_plain_text_is_counted_as_it_is_used_with_a_mix_that_was_read_off_noised_class_sums",
        ),
    ),
    (
        "a group's held-back images are forgotten",
        "dpfpl_common.privacy.accounting:group_epsilon",
        "(held_back, size - n)",
        "(held_back, 0)",
        (f"{ACCOUNTING_TESTS}::test_NI13_of_a_group_some_may_be_trained_on_and_some_held_back",),
    ),
    (
        "ten images are ten times one",
        "dpfpl_common.privacy.accounting:_group_epsilon",
        "z / size",
        "z / size ** 0.5",
        (f"{ACCOUNTING_TESTS}::test_NI13_group_epsilon_is_not_ten_times_epsilon",),
    ),
    (
        "secure sums: rows of the classes that the site has",
        "dpfpl_client.learning.learner:PromptLearner.sum_part",
        "self._noised_class_sums(randomness, stddev)",
        "self._noised_class_sums(randomness, stddev)[self._features.train.labels.unique()]",
        (f"{FOLDER_TESTS}::test_ni1_neighbouring_folders_look_the_same[first of its class-none]",),
    ),
)
