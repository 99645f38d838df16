"""Ways to break the noised step, its noise and its accounting: name, place, piece of code, what it becomes, tests."""

__all__ = ["MECHANISM"]

CLIPPING_TESTS = "tests/common/test_clipping.py"
CORE_TESTS = "tests/client/agent/test_core.py"
LEARNER_TESTS = "tests/client/learning/test_learner.py"
METHODS_TESTS = "tests/client/learning/test_methods.py"
NOISE_TESTS = "tests/common/test_noise.py"
GRADIENTS_TESTS = "tests/client/learning/test_gradients.py"
RELEASED_NOISE_TESTS = "tests/audit/test_released_noise.py"
REPLY_TESTS = "tests/audit/test_reply.py"
STEP_TESTS = "tests/client/learning/test_step.py"
TRUST_TESTS = "tests/common/test_privacy_plan.py"

MECHANISM = (
    (
        "the batch's sum is clipped instead of every example",
        "dpfpl_common.privacy.clipping:clipped_sums",
        "return _1",
        "sums = [block[kept].sum(axis=0) for block in blocks]\n"
        "whole = joint_clip_factors([[float(np.square(s).sum()) for s in sums]], clipping_norms)[0]\n"
        "return [whole * s for s in sums]",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "no clipping at all",
        "dpfpl_common.privacy.clipping:clipped_sums",
        "kept = _1",
        "_0\nfactors = np.ones_like(factors)",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "the last block is left out of the joint norm",
        "dpfpl_common.privacy.clipping:clipped_sums",
        "joint_clip_factors(squared, clipping_norms)",
        "joint_clip_factors(squared[:, :-1], clipping_norms[:-1]) if len(blocks) > 1 else _0",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "non-finite examples pass the clip",
        "dpfpl_common.privacy.clipping:joint_clip_factors",
        "np.where(finite, factors, _1)",
        "np.where(finite, factors, 1.0)",
        (f"{CLIPPING_TESTS}::test_P1_a_bad_example_gets_factor_zero_and_no_other_exceeds_the_joint_bound",),
    ),
    (
        "one block without its noise",
        "dpfpl_client.learning.step:noised_step",
        "[shared_stddev, *[factor_stddev] * len(personal_blocks)]",
        "[shared_stddev, *[factor_stddev] * (len(personal_blocks) - 1), *[0.0] * bool(personal_blocks)]",
        (f"{STEP_TESTS}::test_every_block_gets_its_noise_whatever_the_batch",),
    ),
    (
        "sensitivity C / B, as published",
        "dpfpl_client.learning.step:noised_step",
        "site_noise_stddev(experiment)",
        "_0 / divisor",
        (f"{STEP_TESTS}::test_every_block_gets_its_noise_whatever_the_batch",),
    ),
    (
        "the true batch size as divisor",
        "dpfpl_client.learning.step:noised_step",
        "privacy.sample_rate * privacy.nominal_site_size",
        "max(1, len(gradients))",
        (f"{STEP_TESTS}::test_P8_the_divisor_is_public",),
    ),
    (
        "the same noise for every block",
        "dpfpl_client.learning.step:BlockDPOptimizer.add_noise",
        "p.grad = _1",
        "self._once = getattr(self, '_once', None)\n"
        "if self._once is None and stddev > 0:\n"
        "    self._once = float(self._noise.add(np.zeros(1), 1.0)[0])\n"
        "p.grad = torch.from_numpy(p.summed_grad.numpy() + stddev * (self._once or 0.0))",
        (f"{RELEASED_NOISE_TESTS}::test_every_block_of_every_step_has_the_charged_noise_of_its_own",),
    ),
    (
        "un-noised gradients reach the personal prompt",
        "dpfpl_client.learning.step:noised_step",
        "return _1",
        "raw = [block.sum(axis=0) / divisor for block in directions.split(gradients)]\n"
        "return StepRelease(shared=shared, personal=directions.merge(raw))",
        (f"{STEP_TESTS}::test_what_is_released_is_what_the_noise_source_answered",),
    ),
    (
        "an empty batch releases nothing",
        "dpfpl_client.learning.step:noised_step",
        "privacy = experiment.privacy",
        "_0\n"
        "if len(gradients) == 0:\n"
        "    return StepRelease(np.zeros(gradients.shape[1:]), np.zeros(gradients.shape[1:]))",
        (f"{LEARNER_TESTS}::test_P8_a_round_without_any_example_still_releases_noise",),
    ),
    (
        "every example joins every step",
        "dpfpl_common.privacy.sampling:SystemSampler.draw",
        "np.flatnonzero(_1)",
        "np.arange(count)",
        (f"{STEP_TESTS}::test_P8_batch_sizes_are_binomial_and_every_example_alike",),
    ),
    (
        "noise from a seed",
        "dpfpl_common.privacy.noise:discrete_gaussian",
        "drawn: _1 = []",
        "entropy = np.random.default_rng(0).bytes\n_0",
        (f"{NOISE_TESTS}::test_P4_processes_with_the_same_seeds_draw_different_noise",),
    ),
    (
        "two thirds of the noise",
        "dpfpl_common.privacy.noise:grid_step",
        "1.0 + ROUNDING_SLACK",
        "0.667",
        (f"{NOISE_TESTS}::test_P3_the_operating_systems_noise_has_the_asked_standard_deviation",),
    ),
    (
        "noise added to the float sum, so that floats leak",
        "dpfpl_common.privacy.noise:SystemNoise.add",
        "return np.asarray(_1 * step)",
        "return np.asarray(total + discrete_gaussian(steps.size).reshape(steps.shape) * step)",
        (f"{NOISE_TESTS}::test_P5_what_is_released_lies_on_the_same_grid_whatever_the_data",),
    ),
    (
        "every site adds too small a share",
        "dpfpl_common.privacy_plan:site_noise_stddev",
        "experiment.honest_shares",
        "len(experiment.sites) + 1",
        (f"{TRUST_TESTS}::test_whoever_survives_and_whoever_colludes_the_unknown_noise_suffices",),
    ),
    (
        "the operator's messages are accounted as if aggregated",
        "dpfpl_common.privacy_plan:planned_events",
        "z / math.sqrt(shares)",
        "z",
        (f"{TRUST_TESTS}::test_each_adversary_is_held_to_the_noise_it_meets",),
    ),
    (
        "dplora: the personal context is not cut to the rank",
        "dpfpl_client.learning.methods:DPLoRA.settled",
        "truncated(parameters, self._rank)",
        "parameters",
        (f"{METHODS_TESTS}::test_cut_methods_keep_the_rank_over_many_steps",),
    ),
    (
        "dplora: the size of the personal context is forgotten",
        "dpfpl_client.learning.methods:truncated",
        "left[:, :rank] * values[:rank]",
        "left[:, :rank]",
        (f"{METHODS_TESTS}::test_dplora_keeps_the_size_of_the_personal_context",),
    ),
    (
        "fedpgp: the factors are not kept from round to round",
        "dpfpl_client.agent.store:Record.to_bytes",
        "self.state.parameters is not None",
        "False",
        (f"{LEARNER_TESTS}::test_a_restart_from_the_record_equals_going_on[fedpgp-per_step]",),
    ),
    (
        "fedpgp: the factors are made anew in every round",
        "dpfpl_client.learning.learner:PromptLearner._begun",
        "state.optimizer.steps > 0",
        "False",
        (f"{LEARNER_TESTS}::test_fedpgp_makes_its_factors_once",),
    ),
    (
        "fedotp: its personal block is not accounted for",
        "dpfpl_common.privacy_plan",
        "BLOCKS = _1",
        "BLOCKS = {**_1, 'fedotp': 1}",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "fedotp: the personal block is taken past the clip",
        "dpfpl_client.learning.step:noised_step",
        "shared, *released = _1",
        "_0\nif len(released) == 1:\n    released = [released[0] + 1e-3 * gradients.sum(axis=0)]",
        (f"{STEP_TESTS}::test_what_is_released_is_what_the_noise_source_answered",),
    ),
    (
        "one example's gradient depends on the others'",
        "dpfpl_client.models.class_scorer:loss_scales",
        "residual[torch.arange(len(labels)), labels] -= 1.0",
        "_0\nresidual = residual - residual.mean(dim=0)",
        (f"{GRADIENTS_TESTS}::test_P12_another_examples_image_label_and_size_change_no_bit_of_a_row",),
    ),
    (
        "one example's gradient depends on the others', in a generative model",
        "dpfpl_client.models.generative.scorer:AnswerScorer.gradients",
        "losses.sum()",
        "(losses * losses.detach().mean()).sum()",
        ("tests/client/learning/generative/test_families.py::test_an_example_changes_its_own_gradient_only",),
    ),
    (
        "of two spellings of an answer the first is kept",
        "dpfpl_client.data.questions:_once",
        "{line.answer for line in group}",
        "{normalised(line.answer) for line in group}",
        ("tests/client/data/test_data_questions.py::test_one_line_more_is_at_most_one_example_more_or_less",),
    ),
    (
        "a turn that is longer than a generative model's positions trains",
        "dpfpl_client.models.generative.scorer:AnswerScorer._parts",
        "len(ids) == length and fits[place]",
        "len(ids) == length",
        (
            "tests/client/learning/generative/test_memory.py"
            "::test_a_turn_that_is_too_long_teaches_nothing_and_changes_no_others_gradient",
        ),
    ),
    (
        "gradients that were computed in bfloat16 are not clipped",
        "dpfpl_common.privacy.clipping:clipped_sums",
        "kept = _1",
        "_0\nfactors = np.ones_like(factors)",
        (
            "tests/client/learning/generative/test_precision.py"
            "::test_one_example_more_moves_a_release_by_the_clipping_norm_at_most",
        ),
    ),
    (
        "the update is divided by the true number of images",
        "dpfpl_client.learning.step:noised_step",
        "privacy.nominal_site_size",
        "max(1, len(gradients))",
        (f"{REPLY_TESTS}::test_P10_every_float_of_the_reply_is_within_the_sensitivity",),
    ),
    (
        "a release without a charge",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._ledger.reserve(...)",
        "0",
        (f"{CORE_TESTS}::test_the_charge_is_on_disk_before_anything_is_computed",),
    ),
    (
        "fresh noise for a changed request of the same round",
        "dpfpl_client.agent.core:SiteAgent._known_release",
        "charge.request_digest != digest",
        "False",
        (f"{CORE_TESTS}::test_one_ulp_of_difference_gets_no_fresh_noise",),
    ),
    (
        "the same noise in every step",
        "dpfpl_common.privacy.steps:noised",
        "return _1",
        "kept = noised.__dict__\n"
        "if noise_stddev > 0 and total.shape not in kept:\n"
        "    kept[total.shape] = noise.add(np.zeros(total.shape), 1.0)\n"
        "return total + noise_stddev * kept[total.shape] if noise_stddev > 0 else total",
        (f"{RELEASED_NOISE_TESTS}::test_updates_over_rounds_and_a_restart_are_the_charged_noise",),
    ),
    (
        "a missing factor: twice the norm passes the clip",
        "dpfpl_common.privacy.clipping:joint_clip_factors",
        "1.0 - 1e-12",
        "2.0 - 1e-12",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "a missing factor: the personal blocks' noise without the multiplier",
        "dpfpl_client.learning.step:noised_step",
        "(privacy.noise_multiplier or 0.0) * privacy.factor_norm",
        "privacy.factor_norm",
        (f"{STEP_TESTS}::test_every_block_gets_its_noise_whatever_the_batch",),
    ),
    (
        "examples join a little more often than is charged for",
        "dpfpl_common.privacy.sampling:SystemSampler.draw",
        "int(sample_rate * 2 ** 53)",
        "_0 + 1",
        (f"{STEP_TESTS}::test_P8_the_rate_is_never_exceeded",),
    ),
    (
        "estimates: the largest classes of the batch, not of each example",
        "dpfpl_client.models.text_tower.fast:TextPass.rank_one_pullback",
        "scales = largest_only(scales, few)",
        "top = scales.abs().sum(dim=0).topk(min(few, scales.shape[1])).indices\n"
        "scales = torch.zeros_like(scales).index_copy_(1, top, scales[:, top])",
        (f"{GRADIENTS_TESTS}::test_an_estimate_is_a_function_of_its_own_example_alone",),
    ),
    (
        "estimates: twice the clipping norm for what is cheap to compute",
        "dpfpl_client.learning.step:noised_step",
        "privacy.clipping_norm",
        "_0 * (2.0 if experiment.gradients.classes else 1.0)",
        (f"{GRADIENTS_TESTS}::test_one_example_moves_a_step_by_at_most_the_clipping_norm",),
    ),
    (
        "estimates: taken after the clip, so that rounding lengthens what was clipped",
        "dpfpl_common.privacy.clipping:clipped_sums",
        "kept = _1",
        "_0\nfactors = factors * (1.0 + 2.0**-8)",
        (f"{STEP_TESTS}::test_P10_one_example_moves_the_whole_release_by_at_most_one",),
    ),
    (
        "public pulls: a pull that is made of the batch's un-noised gradients",
        "dpfpl_client.learning.learner:PromptLearner.train_round",
        "pull.personal[None]",
        "_0 + gradients.sum(axis=0)",
        (f"{LEARNER_TESTS}::test_public_pulls_are_made_of_released_values_and_public_facts_alone",),
    ),
)
