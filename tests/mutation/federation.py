"""Ways to break whole-site privacy and what the server takes from sites: see mechanism.py for the fields."""

__all__ = ["FEDERATION"]

AGGREGATION = "server/src/dpfpl_server/federation/aggregation.py"
CORE = "client/src/dpfpl_client/agent/core.py"
EXPERIMENT_TESTS = "tests/common/test_experiment.py"
PULSE_TESTS = "tests/server/test_pulse.py"
RUN_FOLDER_TESTS = "tests/server/test_run_folder.py"
SIGNATURES_TESTS = "tests/server/test_signatures.py"
SIGNED_TEXT = "common/src/dpfpl_common/wire/payloads.py"
SIGNED_TEXT_TESTS = "tests/common/test_signed_text.py"
SITE_UNIT_TESTS = "tests/integration/test_site_unit.py"
STRATEGY_TESTS = "tests/server/test_strategy.py"
TRUST = "common/src/dpfpl_common/privacy_plan.py"
WHOLE_UPDATE = "client/src/dpfpl_client/learning/step.py"

FEDERATION = (
    (
        "whole sites: the update is not clipped",
        WHOLE_UPDATE,
        "    clipped = factor * update if factor > 0",
        "    clipped = update if factor > 0",
        (f"{SITE_UNIT_TESTS}::test_no_update_passes_the_clip",),
    ),
    (
        "whole sites: a non-finite update passes the clip",
        WHOLE_UPDATE,
        "    clipped = factor * update if factor > 0 else np.zeros_like(update)",
        "    clipped = np.nan_to_num(factor * update) if factor > 0 else np.nan_to_num(update)",
        (f"{SITE_UNIT_TESTS}::test_no_update_passes_the_clip",),
    ),
    (
        "whole sites: the number of replies as divisor",
        AGGREGATION,
        "        return np.asarray(noised / (privacy.site_sample_rate * len(experiment.sites)))",
        "        return np.asarray(noised / max(1, len(updates)))",
        (f"{SITE_UNIT_TESTS}::test_the_divisor_is_public",),
    ),
    (
        "whole sites: the noise of a step, divided by its batch size",
        AGGREGATION,
        "        noised = noise.add(total, stddev) if stddev > 0 else total\n",
        "        divisor = privacy.sample_rate * privacy.nominal_site_size\n"
        "        noised = noise.add(total, stddev / divisor) if stddev > 0 else total\n",
        (f"{SITE_UNIT_TESTS}::test_the_noise_on_the_sum_has_this_stddev_and_no_other",),
    ),
    (
        "whole sites: only the rounds that a site took part in are charged, at the amplified rate",
        CORE,
        "            return planned_events(experiment, 0 if self._ledger.events(experiment.name) else None)",
        "            return planned_events(experiment, experiment.rounds.local_steps)",
        (f"{SITE_UNIT_TESTS}::test_sampled_rounds_are_all_charged_with_the_first",),
    ),
    (
        "whole sites: every site joins every round",
        "server/src/dpfpl_server/federation/rounds.py",
        "        return {sites[index]: self._nodes[sites[index]] for index in self._sampler.draw(len(sites), rate)}",
        "        return dict(self._nodes)",
        (f"{SITE_UNIT_TESTS}::test_every_site_joins_every_round_with_the_public_chance[seeded]",),
    ),
    (
        "whole sites: the personal prompt is claimed to be private",
        TRUST,
        '("prompt_recipient", 0.0, 1.0)',
        '("prompt_recipient", z, 1.0)',
        (f"{SITE_UNIT_TESTS}::test_one_event_a_round_whatever_the_local_steps",),
    ),
    (
        "replies are taken without the site's signature",
        "server/src/dpfpl_server/federation/replies.py",
        "        if self._signatures is not None:\n",
        "        if False:\n",
        (f"{SIGNATURES_TESTS}::test_U7_a_reply_that_the_sites_agent_did_not_sign_is_dropped",),
    ),
    (
        "the signature leaves the reply's content out",
        SIGNED_TEXT,
        "        _content_digest(reply),\n",
        "",
        (
            f"{SIGNED_TEXT_TESTS}::test_whatever_is_changed_changes_the_text",
            f"{SIGNATURES_TESTS}::test_U7_a_changed_update_is_dropped",
        ),
    ),
    (
        "the signature is not tied to the experiment",
        SIGNED_TEXT,
        "        experiment.digest().encode(),\n",
        "",
        (
            f"{SIGNED_TEXT_TESTS}::test_whatever_is_changed_changes_the_text",
            f"{SIGNATURES_TESTS}::test_U7_the_same_reply_under_another_experiment_is_dropped",
        ),
    ),
    (
        "a median of single shares of noise passes for their sum",
        "common/src/dpfpl_common/experiment.py",
        '    if rule != "mean" and p.trust != "local":\n',
        '    if rule != "mean" and p.trust == "central":\n',
        (f"{EXPERIMENT_TESTS}::test_robust_rules_need_local_trust_and_enough_sites",),
    ),
    (
        "a changed checkpoint is resumed from",
        "server/src/dpfpl_server/runs/store.py",
        "        if not whole or digest != sha256:\n",
        "        if not whole:\n",
        (f"{RUN_FOLDER_TESTS}::test_L2_a_checkpoint_that_is_not_what_was_saved_is_refused",),
    ),
    (
        "a second reply to the same message is aggregated too",
        "server/src/dpfpl_server/federation/exchange.py",
        '            site = waiting.pop(message_id, "")\n',
        '            site = waiting.pop(message_id, "") or answered.get(message_id, "")\n',
        (f"{STRATEGY_TESTS}::test_L5_a_duplicate_reply_is_counted_and_not_aggregated",),
    ),
    (
        "two server programs work on one run",
        "server/src/dpfpl_server/runs/folder.py",
        "                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "                pass\n",
        (f"{PULSE_TESTS}::test_a_holder_is_seen_a_second_one_refused_and_a_killed_one_gone",),
    ),
    (
        "whole sites: the examples are clipped, and not only their sum",
        "client/src/dpfpl_client/learning/learner.py",
        "            gradient = batch_gradient(experiment, self._total(global_context, state.context, "
        "examples, finite)[None])\n",
        "            from dpfpl_client.learning.step import clipped_sums\n"
        "            each = self._gradients(global_context, state.context, examples)\n"
        "            gradient = clipped_sums([each], [experiment.privacy.clipping_norm])[0]\n"
        "            gradient = gradient / (experiment.privacy.sample_rate * experiment.privacy.nominal_site_size)\n",
        (f"{SITE_UNIT_TESTS}::test_a_site_clips_its_sum_and_not_its_examples",),
    ),
    (
        "central: the server's noise is left out",
        AGGREGATION,
        "        total = noise.add(total, stddev / divisor / math.sqrt(experiment.rounds.local_steps))\n",
        "        total = total / 1.0\n",
        ("tests/server/test_strategy.py::test_the_servers_noise_moves_the_prompt_under_central_trust_only",),
    ),
    (
        "central: the server's noise is that of a mean over sites",
        AGGREGATION,
        "noise.add(total, stddev / divisor / math.sqrt(",
        "noise.add(total, stddev / divisor / len(experiment.sites) / math.sqrt(",
        ("tests/server/test_aggregation.py::test_central_noise_goes_to_the_sum_with_the_stddev_of_the_analysis",),
    ),
)
