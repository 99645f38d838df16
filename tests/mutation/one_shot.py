"""Ways to break the noised class sums and what is made of them: see mechanism.py for the fields."""

__all__ = ["ONE_SHOT"]

LEARNER_TESTS = "tests/client/learning/test_learner.py"
PROTOTYPES_TESTS = "tests/client/learning/test_prototypes.py"
RELEASE_TESTS = "tests/common/test_one_shot.py"
EVIDENCE_TESTS = "tests/common/test_evidence.py"
FEDERATION_TESTS = "tests/bench/test_evidence_federation.py"

ONE_SHOT = (
    (
        "class sums: a long feature counts in full",
        "dpfpl_common.privacy.one_shot:bounded",
        "safe * _1",
        "safe",
        (f"{PROTOTYPES_TESTS}::test_one_example_moves_the_sums_by_at_most_one",),
    ),
    (
        "class sums: only classes with images are noised",
        "dpfpl_common.privacy.one_shot:noised_class_sums",
        "return _1",
        "return np.where(np.any(sums != 0, axis=1)[:, None], _1, 0.0)",
        (f"{PROTOTYPES_TESTS}::test_every_row_of_the_public_class_list_is_noised_even_without_any_image",),
    ),
    (
        "one_shot: a row of pure noise is believed",
        "dpfpl_client.learning.evidence:prototypes_from",
        "pure_noise + hiding",
        "0",
        (f"{PROTOTYPES_TESTS}::test_pure_noise_teaches_nothing",),
    ),
    (
        "one_shot: a class that may hide in the noise is given up",
        "dpfpl_client.learning.evidence:prototypes_from",
        "np.where(found, signal, _1)",
        "signal",
        (f"{PROTOTYPES_TESTS}::test_a_clear_class_is_found_and_an_absent_one_is_not",),
    ),
    (
        "one_shot: how far to believe a row is decided from the un-noised sums",
        "dpfpl_client.learning.learner:PromptLearner._train_on_prototypes",
        "prototypes = _1",
        "train = self._features.train\n"
        "true = np.zeros_like(sums)\n"
        "np.add.at(true, train.labels.numpy(), train.features.double().numpy())\n"
        "_0\n"
        "sizes = np.linalg.norm(true, axis=1)\n"
        "prototypes = dataclasses.replace(prototypes, weights=sizes / max(1e-9, sizes.sum()))",
        (f"{LEARNER_TESTS}::test_one_shot_trains_on_what_the_noise_source_answered_alone",),
    ),
    (
        "one_shot: the classes that a site lacks lose their share as the noise falls",
        "dpfpl_client.learning.evidence:prototypes_from",
        "max(min(math.sqrt(hiding), most), least)",
        "min(math.sqrt(hiding), most)",
        (f"{PROTOTYPES_TESTS}::test_the_absent_keep_their_share_however_little_noise_there_is",),
    ),
    (
        "one_shot: the noised sums are drawn anew in every round",
        "dpfpl_client.learning.learner:PromptLearner._train_on_prototypes",
        "dataclasses.replace(state, class_sums=sums)",
        "dataclasses.replace(state, class_sums=None)",
        (f"{LEARNER_TESTS}::test_one_shot_trains_on_what_the_noise_source_answered_alone",),
    ),
    (
        "projection: directions from the site's own images",
        "dpfpl_client.learning.learner:PromptLearner._public_facts",
        "return _1, self._scorer.public_directions(_2, count)",
        "own = self._features.train.features.double().numpy()\n"
        "return _1, np.linalg.svd(own, full_matrices=False)[2][:count]",
        (f"{LEARNER_TESTS}::test_one_shot_trains_on_what_the_noise_source_answered_alone",),
    ),
    (
        "projection: only the noise in the directions counts, but all of it stays",
        "dpfpl_client.learning.evidence:prototypes_from",
        "sums, size = _1",
        "size = len(directions)",
        (f"{PROTOTYPES_TESTS}::test_pure_noise_teaches_nothing[text]",),
    ),
    (
        "one_shot: an honest update may be longer than the server takes",
        "dpfpl_client.learning.learner:PromptLearner._train_on_prototypes",
        "update * min(1.0, longest / max(length, 1e-300))",
        "update",
        (
            "tests/server/test_aggregation.py"
            "::test_an_honest_update_of_one_shot_keeps_within_the_norm_cap_whatever_its_gradients",
        ),
    ),
    (
        "vote: an example counts for more than one",
        "dpfpl_common.privacy.one_shot:noised_vote",
        "np.clip(_1, -1.0, 1.0)",
        "_1",
        (f"{RELEASE_TESTS}::test_one_example_moves_the_vote_by_at_most_one",),
    ),
    (
        "vote: half its noise",
        "dpfpl_common.privacy.one_shot:noised_vote",
        "noise.add(total, noise_multiplier)",
        "noise.add(total, noise_multiplier / 2)",
        (f"{RELEASE_TESTS}::test_the_votes_noise_has_the_stated_deviation",),
    ),
    (
        "vote: the class sums keep all of the budget, so the vote is not paid for",
        "dpfpl_common.privacy_plan:class_sums_multiplier",
        "return _1",
        "return z",
        (f"{RELEASE_TESTS}::test_what_is_charged_is_what_is_released",),
    ),
    (
        "vote: an image stays in the row of its own class",
        "dpfpl_common.evidence:_without_itself",
        "own = _1",
        "own = 0.0 * weights[labels][:, None] * features",
        (f"{EVIDENCE_TESTS}::test_an_image_does_not_vote_for_the_row_that_it_made_itself",),
    ),
    (
        "vote: told again for another pool",
        "dpfpl_client.learning.learner:PromptLearner._with_vote",
        "dataclasses.replace(result.state, vote=told)",
        "result.state",
        (f"{FEDERATION_TESTS}::test_a_site_votes_once",),
    ),
    (
        "moment: an example counts for more than one",
        "dpfpl_common.privacy.one_shot:noised_moment",
        "bounded(residuals)",
        "(residuals, True)",
        (f"{RELEASE_TESTS}::test_one_example_moves_the_moment_by_at_most_one",),
    ),
    (
        "moment: half its noise",
        "dpfpl_common.privacy.one_shot:noised_moment",
        "noise.add(total, noise_multiplier)",
        "noise.add(total, noise_multiplier / 2)",
        (f"{RELEASE_TESTS}::test_the_moments_noise_has_the_stated_deviation_in_every_coordinate",),
    ),
    (
        "moment: the class sums keep its share of the budget, so it is not paid for",
        "dpfpl_common.privacy.one_shot:shared_out",
        "(1 + moment) * VOTE_SHARE",
        "VOTE_SHARE",
        (f"{RELEASE_TESTS}::test_what_is_charged_is_what_is_released",),
    ),
    (
        "moment: off the diagonal an example counts twice",
        "dpfpl_common.privacy.one_shot:packed_moment",
        "math.sqrt(2)",
        "2.0",
        (f"{RELEASE_TESTS}::test_one_example_moves_the_moment_by_at_most_one",),
    ),
    (
        "shift: every site is taken for one whose images look unlike the others'",
        "dpfpl_common.evidence:looks_unlike",
        "float(sure @ (apart - expected)) > _1",
        "True",
        (f"{EVIDENCE_TESTS}::test_sites_alike_are_not_taken_for_unlike_ones",),
    ),
    (
        "shift: a site is compared with a pool that holds its own rows",
        "dpfpl_common.evidence:_without",
        "weights[:, None] * alone.rows",
        "0.0 * alone.rows",
        (f"{EVIDENCE_TESTS}::test_a_site_is_compared_with_the_others_and_not_with_itself",),
    ),
    (
        "shift: a site takes its own rows though the others' serve it better",
        "dpfpl_common.evidence:prefers_own",
        "bool(own.sum() > theirs.sum())",
        "bool(True)",
        (f"{EVIDENCE_TESTS}::test_unlike_images_that_the_others_classify_better_stay_with_them",),
    ),
    (
        "shift: a site like the others takes its own rows where a count flatters them",
        "dpfpl_common.evidence:prefers_own",
        "looks_unlike(pool, alone, weights, texts, scale, scatter)",
        "True",
        (f"{EVIDENCE_TESTS}::test_a_site_like_the_others_stays_with_them",),
    ),
    (
        "shift: a site keeps to the pool whatever its own images say",
        "dpfpl_client.learning.learner:PromptLearner.own_moment",
        "prefers_own(*known, features, labels)",
        "False",
        (f"{FEDERATION_TESTS}::test_a_site_with_another_device_has_class_vectors_of_its_own",),
    ),
    (
        "shift: a site's own class vectors are sharpened by the moment around the pool's",
        "dpfpl_client.learning.evidence:pooled_head",
        "directions(own_head(shared, own, weights, plain, scale))",
        "directions(class_head(shared, plain, scale))",
        (
            f"{FEDERATION_TESTS}::test_a_site_with_another_device_sharpens_its_own_class_vectors_by_a_moment_around_them",
        ),
    ),
    (
        "shift: how long an evaluation takes tells whose class vectors a site uses",
        "dpfpl_client.learning.learner:PromptLearner.own_moment",
        "self._experiment.uses_moment",
        "self._experiment.uses_moment and prefers_own(*known, features, labels)",
        (
            f"{FEDERATION_TESTS}::test_a_site_with_another_device_sharpens_its_own_class_vectors_by_a_moment_around_them",
        ),
    ),
    (
        "shift: a site's own moment has no noise",
        "dpfpl_client.learning.learner:PromptLearner.own_moment",
        "vote_multiplier(self._experiment)",
        "0.0",
        (
            f"{FEDERATION_TESTS}::test_a_site_with_another_device_sharpens_its_own_class_vectors_by_a_moment_around_them",
        ),
    ),
    (
        "shift: a site that is asked again draws other noise for what it uses",
        "dpfpl_client.agent.core:SiteAgent._evaluate",
        "np.array_equal(kept.pool, pool)",
        "False",
        (f"{FEDERATION_TESTS}::test_an_evaluation_that_is_asked_again_changes_nothing_that_the_site_uses",),
    ),
    (
        "shift: what leaves a site goes by its exact answers",
        "dpfpl_client.use.prompt:SitePrompt.head",
        "None if leaves else rows_at_site(experiment, self.class_sums, choice.own)",
        "rows_at_site(experiment, self.class_sums, choice.own)",
        (f"{FEDERATION_TESTS}::test_ni7_whose_class_vectors_suit_a_site_better_never_leaves_it",),
    ),
    (
        "shift: under secure trust a sum of all sites is taken for a site's own rows",
        "dpfpl_client.learning.evidence:own_rows",
        "class_sums is None or experiment.privacy.trust == 'secure'",
        "class_sums is None",
        (f"{FEDERATION_TESTS}::test_under_secure_trust_no_rows_are_a_sites_own",),
    ),
    (
        "evidence: pure noise is taken for images",
        "dpfpl_common.evidence:_reaches",
        "energy <= _1",
        "False",
        (f"{EVIDENCE_TESTS}::test_a_thousand_times_pure_noise_is_never_taken_for_images",),
    ),
    (
        "one_shot: a site votes again after an older state was put back",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._ledger.voted(experiment.name)",
        "False",
        (
            f"{FEDERATION_TESTS}::test_a_state_folder_put_back_from_between_rows_and_vote_votes_no_second_time_for_nothing",
        ),
    ),
)
