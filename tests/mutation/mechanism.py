"""Ways to break the noised step, its noise and its accounting: name, file, text there, what it becomes, tests."""

__all__ = ["MECHANISM"]

CLIPPING_TESTS = "tests/common/test_clipping.py"
CORE = "client/src/dpfpl_client/agent/core.py"
CORE_TESTS = "tests/client/agent/test_core.py"
LEARNER = "client/src/dpfpl_client/learning/learner.py"
LEARNER_TESTS = "tests/client/learning/test_learner.py"
METHODS = "client/src/dpfpl_client/learning/methods.py"
METHODS_TESTS = "tests/client/learning/test_methods.py"
NOISE = "common/src/dpfpl_common/privacy/noise.py"
NOISE_TESTS = "tests/common/test_noise.py"
NO_LEAK_BETWEEN_EXAMPLES_TESTS = "tests/client/learning/test_no_leak_between_examples.py"
OPTIMIZER = "client/src/dpfpl_client/learning/step.py"
RELEASED_NOISE_TESTS = "tests/audit/test_released_noise.py"
REPLY_TESTS = "tests/audit/test_reply.py"
SAMPLING = "common/src/dpfpl_common/privacy/sampling.py"
STEP = "client/src/dpfpl_client/learning/step.py"
STEP_TESTS = "tests/client/learning/test_step.py"
TRUST = "common/src/dpfpl_common/privacy_plan.py"
TRUST_TESTS = "tests/common/test_trust.py"

MECHANISM = (
    (
        "the batch's sum is clipped instead of every example",
        OPTIMIZER,
        "    return [np.tensordot(factors[kept, b], block[kept], axes=1) for b, block in enumerate(blocks)]",
        "    sums = [block[kept].sum(axis=0) for block in blocks]\n"
        "    whole = joint_clip_factors([[float(np.square(s).sum()) for s in sums]], "
        "clipping_norms)[0]\n"
        "    return [whole * s for s in sums]",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "no clipping at all",
        OPTIMIZER,
        "    kept = factors[:, 0] > 0\n",
        "    kept = factors[:, 0] > 0\n    factors = np.ones_like(factors)\n",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "the last block is left out of the joint norm",
        OPTIMIZER,
        "np.repeat(joint_clip_factors(squared, clipping_norms)[:, None]",
        "np.repeat(joint_clip_factors(squared[:, :-1] if len(blocks) > 1 else squared, "
        "clipping_norms[:-1] if len(blocks) > 1 else clipping_norms)[:, None]",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "non-finite examples pass the clip",
        "common/src/dpfpl_common/privacy/clipping.py",
        "    return np.where(finite, factors, 0.0)",
        "    return np.where(finite, factors, 1.0)",
        (f"{CLIPPING_TESTS}::test_P1_a_bad_example_gets_factor_zero_and_no_other_exceeds_the_joint_bound",),
    ),
    (
        "one block without its noise",
        STEP,
        "noise_stddevs=[shared_stddev, *[factor_stddev] * len(personal_blocks)]",
        "noise_stddevs=[shared_stddev, *[factor_stddev] * (len(personal_blocks) - 1), *[0.0] * bool(personal_blocks)]",
        (f"{STEP_TESTS}::test_every_block_gets_its_noise_whatever_the_batch",),
    ),
    (
        "sensitivity C / B, as published",
        STEP,
        "    shared_stddev = site_noise_stddev(experiment)\n",
        "    shared_stddev = site_noise_stddev(experiment) / divisor\n",
        (f"{STEP_TESTS}::test_every_block_gets_its_noise_whatever_the_batch",),
    ),
    (
        "the true batch size as divisor",
        STEP,
        "        expected_batch_size=divisor,",
        "        expected_batch_size=max(1, len(gradients)),",
        (f"{STEP_TESTS}::test_P8_the_divisor_is_public",),
    ),
    (
        "the same noise for every block",
        OPTIMIZER,
        "            total = p.summed_grad.numpy()\n",
        "            total = p.summed_grad.numpy()\n"
        "            self._once = getattr(self, '_once', None)\n"
        "            if self._once is None and stddev > 0:\n"
        "                self._once = float(self._noise.add(np.zeros(1), 1.0)[0])\n"
        "            p.grad = torch.from_numpy(total + stddev * (self._once or 0.0))\n"
        "            continue\n",
        (f"{RELEASED_NOISE_TESTS}::test_every_block_of_every_step_has_the_charged_noise_of_its_own",),
    ),
    (
        "un-noised gradients reach the personal prompt",
        STEP,
        "    return StepRelease(shared=shared, personal=directions.merge(released))",
        "    raw = [block.sum(axis=0) / divisor for block in directions.split(gradients)]\n"
        "    return StepRelease(shared=shared, personal=directions.merge(raw))",
        (f"{STEP_TESTS}::test_what_is_released_is_what_the_noise_source_answered",),
    ),
    (
        "an empty batch releases nothing",
        STEP,
        "    privacy = experiment.privacy\n    divisor",
        "    privacy = experiment.privacy\n"
        "    if len(gradients) == 0:\n"
        "        return StepRelease(np.zeros(gradients.shape[1:]), np.zeros(gradients.shape[1:]))\n"
        "    divisor",
        (f"{LEARNER_TESTS}::test_P8_a_round_without_any_example_still_releases_noise",),
    ),
    (
        "every example joins every step",
        SAMPLING,
        "        return np.flatnonzero(words < np.uint64(int(sample_rate * 2**53)))",
        "        return np.arange(count)",
        (f"{STEP_TESTS}::test_P8_batch_sizes_are_binomial_and_every_example_alike",),
    ),
    (
        "noise from a seed",
        NOISE,
        "    drawn: list[npt.NDArray[np.int64]] = []\n",
        "    entropy = np.random.default_rng(0).bytes\n    drawn: list[npt.NDArray[np.int64]] = []\n",
        (f"{NOISE_TESTS}::test_P4_processes_with_the_same_seeds_draw_different_noise",),
    ),
    (
        "two thirds of the noise",
        NOISE,
        "        step = noise_stddev * (1.0 + ROUNDING_SLACK) / SCALE",
        "        step = noise_stddev * 0.667 / SCALE",
        (f"{NOISE_TESTS}::test_P3_the_operating_systems_noise_has_the_asked_standard_deviation",),
    ),
    (
        "noise added to the float sum, so that floats leak",
        NOISE,
        "np.asarray((steps.astype(np.int64) + discrete_gaussian(steps.size).reshape(steps.shape)) * step)",
        "np.asarray(total + discrete_gaussian(steps.size).reshape(steps.shape) * step)",
        (f"{NOISE_TESTS}::test_P5_what_is_released_lies_on_the_same_grid_whatever_the_data",),
    ),
    (
        "every site adds too small a share",
        TRUST,
        "            return stddev / math.sqrt(honest_shares(experiment))",
        "            return stddev / math.sqrt(len(experiment.sites) + 1)",
        (f"{TRUST_TESTS}::test_whoever_survives_and_whoever_colludes_the_unknown_noise_suffices",),
    ),
    (
        "the operator's messages are accounted as if aggregated",
        TRUST,
        ".get(privacy.trust, z / math.sqrt(shares))",
        ".get(privacy.trust, z)",
        (f"{TRUST_TESTS}::test_each_adversary_is_held_to_the_noise_it_meets",),
    ),
    (
        "dplora: the personal context is not cut to the rank",
        METHODS,
        "        return truncated(parameters, self._rank)\n",
        "        return parameters\n",
        (f"{METHODS_TESTS}::test_cut_methods_keep_the_rank_over_many_steps",),
    ),
    (
        "dplora: the size of the personal context is forgotten",
        "client/src/dpfpl_client/learning/methods.py",
        "    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])\n",
        "    return np.asarray(left[:, :rank] @ right[:rank])\n",
        (f"{METHODS_TESTS}::test_dplora_keeps_the_size_of_the_personal_context",),
    ),
    (
        "fedpgp: the factors are not kept from round to round",
        "client/src/dpfpl_client/agent/store.py",
        "        if self.state.parameters is not None:\n",
        "        if False:\n",
        (f"{LEARNER_TESTS}::test_a_restart_from_the_record_equals_going_on[fedpgp-1-per_step]",),
    ),
    (
        "fedpgp: the factors are made anew in every round",
        LEARNER,
        "        if state.optimizer.steps > 0:\n            return state\n",
        "",
        (f"{LEARNER_TESTS}::test_fedpgp_makes_its_factors_once",),
    ),
    (
        "fedotp: its personal block is not accounted for",
        TRUST,
        '"fedotp": 2',
        '"fedotp": 1',
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "fedotp: the personal block is taken past the clip",
        STEP,
        "    shared, *released = optimizer.release(blocks)\n",
        "    shared, *released = optimizer.release(blocks)\n"
        "    if len(released) == 1:\n"
        "        released = [released[0] + 1e-3 * gradients.sum(axis=0)]\n",
        (f"{STEP_TESTS}::test_what_is_released_is_what_the_noise_source_answered",),
    ),
    (
        "one example's gradient depends on the others'",
        "client/src/dpfpl_client/models/class_scorer.py",
        "    residual[torch.arange(len(labels)), labels] -= 1.0\n",
        "    residual[torch.arange(len(labels)), labels] -= 1.0\n    residual = residual - residual.mean(dim=0)\n",
        (f"{NO_LEAK_BETWEEN_EXAMPLES_TESTS}::test_P12_another_examples_image_label_and_size_change_no_bit_of_a_row",),
    ),
    (
        "one example's gradient depends on the others', in a generative model",
        "client/src/dpfpl_client/models/generative/scorer.py",
        "torch.autograd.grad(losses.sum(), copies)[0]",
        "torch.autograd.grad((losses * losses.detach().mean()).sum(), copies)[0]",
        ("tests/client/learning/generative/test_families.py::test_an_example_changes_its_own_gradient_only",),
    ),
    (
        "of two spellings of an answer the first is kept",
        "client/src/dpfpl_client/data/questions.py",
        "if len({line.answer for line in group}) > 1:",
        "if len({normalised(line.answer) for line in group}) > 1:",
        ("tests/client/data/test_data_questions.py::test_one_line_more_is_at_most_one_example_more_or_less",),
    ),
    (
        "a turn that is longer than a generative model's positions trains",
        "client/src/dpfpl_client/models/generative/scorer.py",
        "len(ids) == length and fits[place]]",
        "len(ids) == length]",
        (
            "tests/client/learning/generative/test_memory.py"
            "::test_a_turn_that_is_too_long_teaches_nothing_and_changes_no_others_gradient",
        ),
    ),
    (
        "gradients that were computed in bfloat16 are not clipped",
        OPTIMIZER,
        "    kept = factors[:, 0] > 0\n",
        "    kept = factors[:, 0] > 0\n    factors = np.ones_like(factors)\n",
        (
            "tests/client/learning/generative/test_precision.py"
            "::test_one_example_more_moves_a_release_by_the_clipping_norm_at_most",
        ),
    ),
    (
        "the update is divided by the true number of images",
        STEP,
        "    divisor = privacy.sample_rate * privacy.nominal_site_size\n    shared_stddev",
        "    divisor = privacy.sample_rate * max(1, len(gradients))\n    shared_stddev",
        (f"{REPLY_TESTS}::test_P10_every_float_of_the_reply_is_within_the_sensitivity",),
    ),
    (
        "a release without a charge",
        CORE,
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n",
        "        sequence = 0\n",
        (f"{CORE_TESTS}::test_the_charge_is_on_disk_before_anything_is_computed",),
    ),
    (
        "fresh noise for a changed request of the same round",
        CORE,
        "        if charge.request_digest != digest:",
        "        if False:",
        (f"{CORE_TESTS}::test_one_ulp_of_difference_gets_no_fresh_noise",),
    ),
    (
        "the same noise in every step",
        OPTIMIZER,
        "            released = self._noise.add(total, stddev) if stddev > 0 else total\n",
        "            kept = BlockDPOptimizer.__dict__.get('kept', {})\n"
        "            BlockDPOptimizer.kept = kept\n"
        "            if stddev > 0 and total.shape not in kept:\n"
        "                kept[total.shape] = self._noise.add(np.zeros(total.shape), 1.0)\n"
        "            released = total + stddev * kept[total.shape] if stddev > 0 else total\n",
        (f"{RELEASED_NOISE_TESTS}::test_updates_over_rounds_and_a_restart_are_the_charged_noise",),
    ),
    (
        "a missing factor: twice the norm passes the clip",
        "common/src/dpfpl_common/privacy/clipping.py",
        "    factors = np.minimum(1.0, (1.0 - 1e-12) / np.maximum(joint, 1e-300))\n",
        "    factors = np.minimum(1.0, (2.0 - 1e-12) / np.maximum(joint, 1e-300))\n",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "a missing factor: the personal blocks' noise without the multiplier",
        STEP,
        "    factor_stddev = (privacy.noise_multiplier or 0.0) * privacy.factor_norm\n",
        "    factor_stddev = privacy.factor_norm\n",
        (f"{STEP_TESTS}::test_every_block_gets_its_noise_whatever_the_batch",),
    ),
    (
        "examples join a little more often than is charged for",
        SAMPLING,
        "np.uint64(int(sample_rate * 2**53))",
        "np.uint64(int(sample_rate * 2**53) + 1)",
        (f"{STEP_TESTS}::test_P8_the_rate_is_never_exceeded",),
    ),
    (
        "estimates: the largest classes of the batch, not of each example",
        "client/src/dpfpl_client/models/text_tower/fast.py",
        "            scales = largest_only(scales, few)\n",
        "            top = scales.abs().sum(dim=0).topk(min(few, scales.shape[1])).indices\n"
        "            scales = torch.zeros_like(scales).index_copy_(1, top, scales[:, top])\n",
        ("tests/client/learning/test_gradients.py::test_an_estimate_is_a_function_of_its_own_example_alone",),
    ),
    (
        "estimates: twice the clipping norm for what is cheap to compute",
        STEP,
        "        clipping_norms=[privacy.clipping_norm, ",
        "        clipping_norms=[privacy.clipping_norm * (2.0 if experiment.gradients.classes else 1.0), ",
        ("tests/client/learning/test_estimates.py::test_one_example_moves_a_step_by_at_most_the_clipping_norm",),
    ),
    (
        "estimates: taken after the clip, so that rounding lengthens what was clipped",
        OPTIMIZER,
        "    kept = factors[:, 0] > 0\n",
        "    kept = factors[:, 0] > 0\n    factors = factors * (1.0 + 2.0**-8)\n",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "public pulls: a pull that is made of the batch's un-noised gradients",
        LEARNER,
        "directions.split(pull.personal[None])",
        "directions.split(pull.personal[None] + gradients.sum(axis=0))",
        (f"{LEARNER_TESTS}::test_public_pulls_are_made_of_released_values_and_public_facts_alone",),
    ),
)
