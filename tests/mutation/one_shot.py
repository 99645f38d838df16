"""Ways to break the noised class sums and what is made of them: name, file, text there, what it becomes, tests."""

__all__ = ["ONE_SHOT"]

LEARNER = "client/src/dpfpl_client/learning/learner.py"
LEARNER_TESTS = "tests/client/learning/test_learner.py"
PROTOTYPES = "client/src/dpfpl_client/learning/prototypes.py"
PROTOTYPES_TESTS = "tests/client/learning/test_prototypes.py"

ONE_SHOT = (
    (
        "class sums: a long feature counts in full",
        PROTOTYPES,
        " * np.minimum(1.0, (1.0 - 1e-12) / np.maximum(norms[finite], 1e-300))[:, None]",
        "",
        (f"{PROTOTYPES_TESTS}::test_one_example_moves_the_sums_by_at_most_one",),
    ),
    (
        "class sums: only classes with images are noised",
        PROTOTYPES,
        "    return noise.add(sums, noise_multiplier) if noise_multiplier > 0 else sums",
        "    noised = noise.add(sums, noise_multiplier) if noise_multiplier > 0 else sums\n"
        "    return np.where(np.any(sums != 0, axis=1)[:, None], noised, 0.0)",
        (f"{PROTOTYPES_TESTS}::test_every_row_of_the_public_class_list_is_noised_even_without_any_image",),
    ),
    (
        "one_shot: a row of pure noise is believed",
        PROTOTYPES,
        "    found = energy > pure_noise + hiding\n",
        "    found = energy > 0\n",
        (f"{PROTOTYPES_TESTS}::test_pure_noise_teaches_nothing",),
    ),
    (
        "one_shot: a class that may hide in the noise is given up",
        PROTOTYPES,
        "    weights = np.where(found, signal, max(min(math.sqrt(hiding), most), least))\n",
        "    weights = signal\n",
        (f"{PROTOTYPES_TESTS}::test_a_clear_class_is_found_and_an_absent_one_is_not",),
    ),
    (
        "one_shot: how far to believe a row is decided from the un-noised sums",
        LEARNER,
        "        prototypes = prototypes_from(\n"
        "            sums, noise_multiplier, *self._public_facts, absent_weight=experiment.prompt.absent_weight\n"
        "        )\n",
        "        train = self._features.train\n"
        "        true = np.zeros_like(sums)\n"
        "        np.add.at(true, train.labels.numpy(), train.features.double().numpy())\n"
        "        prototypes = prototypes_from(\n"
        "            sums, noise_multiplier, *self._public_facts, absent_weight=experiment.prompt.absent_weight\n"
        "        )\n"
        "        sizes = np.linalg.norm(true, axis=1)\n"
        "        prototypes = dataclasses.replace(prototypes, weights=sizes / max(1e-9, sizes.sum()))\n",
        (f"{LEARNER_TESTS}::test_one_shot_trains_on_what_the_noise_source_answered_alone",),
    ),
    (
        "one_shot: the classes that a site lacks lose their share as the noise falls",
        PROTOTYPES,
        "    weights = np.where(found, signal, max(min(math.sqrt(hiding), most), least))\n",
        "    weights = np.where(found, signal, min(math.sqrt(hiding), most))\n",
        (f"{PROTOTYPES_TESTS}::test_the_absent_keep_their_share_however_little_noise_there_is",),
    ),
    (
        "one_shot: the noised sums are drawn anew in every round",
        LEARNER,
        "            state = dataclasses.replace(state, class_sums=sums)\n",
        "            state = dataclasses.replace(state, class_sums=None)\n",
        (f"{LEARNER_TESTS}::test_one_shot_trains_on_what_the_noise_source_answered_alone",),
    ),
    (
        "projection: directions from the site's own images",
        LEARNER,
        "        return expected, self._scorer.public_directions(self._initial, count)\n",
        "        own = self._features.train.features.double().numpy()\n"
        "        return expected, np.linalg.svd(own, full_matrices=False)[2][:count]\n",
        (f"{LEARNER_TESTS}::test_one_shot_trains_on_what_the_noise_source_answered_alone",),
    ),
    (
        "projection: only the noise in the directions counts, but all of it stays",
        PROTOTYPES,
        "        sums, size = sums @ directions.T @ directions, len(directions)\n",
        "        size = len(directions)\n",
        (f"{PROTOTYPES_TESTS}::test_pure_noise_teaches_nothing[text]",),
    ),
    (
        "one_shot: an honest update may be longer than the server takes",
        LEARNER,
        "update=update * min(1.0, longest / max(length, 1e-300))",
        "update=update",
        (
            "tests/server/test_aggregation.py"
            "::test_an_honest_update_of_one_shot_keeps_within_the_norm_cap_whatever_its_gradients",
        ),
    ),
)
