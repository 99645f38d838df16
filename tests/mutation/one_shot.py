"""Ways to break the noised class sums and what is made of them: see mechanism.py for the fields."""

__all__ = ["ONE_SHOT"]

LEARNER_TESTS = "tests/client/learning/test_learner.py"
PROTOTYPES_TESTS = "tests/client/learning/test_prototypes.py"

ONE_SHOT = (
    (
        "class sums: a long feature counts in full",
        "dpfpl_client.learning.prototypes:noised_class_sums",
        "rows[finite] * _1",
        "rows[finite]",
        (f"{PROTOTYPES_TESTS}::test_one_example_moves_the_sums_by_at_most_one",),
    ),
    (
        "class sums: only classes with images are noised",
        "dpfpl_client.learning.prototypes:noised_class_sums",
        "return _1",
        "return np.where(np.any(sums != 0, axis=1)[:, None], _1, 0.0)",
        (f"{PROTOTYPES_TESTS}::test_every_row_of_the_public_class_list_is_noised_even_without_any_image",),
    ),
    (
        "one_shot: a row of pure noise is believed",
        "dpfpl_client.learning.prototypes:prototypes_from",
        "pure_noise + hiding",
        "0",
        (f"{PROTOTYPES_TESTS}::test_pure_noise_teaches_nothing",),
    ),
    (
        "one_shot: a class that may hide in the noise is given up",
        "dpfpl_client.learning.prototypes:prototypes_from",
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
        "dpfpl_client.learning.prototypes:prototypes_from",
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
        "dpfpl_client.learning.prototypes:prototypes_from",
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
)
