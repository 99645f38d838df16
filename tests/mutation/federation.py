"""Ways to break whole-site privacy and what the server takes from sites: see mechanism.py for the fields."""

__all__ = ["FEDERATION"]

EXPERIMENT_TESTS = "tests/common/test_experiment.py"
PULSE_TESTS = "tests/common/test_heartbeat.py"
RUN_FOLDER_TESTS = "tests/server/test_run_folder.py"
SIGNATURES_TESTS = "tests/server/test_signatures.py"
SIGNED_TEXT_TESTS = "tests/common/test_payload.py"
SITE_UNIT_TESTS = "tests/integration/test_site_unit.py"
STRATEGY_TESTS = "tests/server/test_strategy.py"

FEDERATION = (
    (
        "whole sites: the update is not clipped",
        "dpfpl_common.privacy.steps:noised_update",
        "factor * update",
        "update",
        (f"{SITE_UNIT_TESTS}::test_no_update_passes_the_clip",),
    ),
    (
        "whole sites: a non-finite update passes the clip",
        "dpfpl_common.privacy.steps:noised_update",
        "factor * update if factor > 0 else _1",
        "np.nan_to_num(factor * update) if factor > 0 else np.nan_to_num(update)",
        (f"{SITE_UNIT_TESTS}::test_no_update_passes_the_clip",),
    ),
    (
        "whole sites: the number of replies as divisor",
        "dpfpl_server.federation.aggregation:aggregate",
        "privacy.site_sample_rate * len(experiment.sites)",
        "max(1, len(updates))",
        (f"{SITE_UNIT_TESTS}::test_the_divisor_is_public",),
    ),
    (
        "whole sites: the noise of a step, divided by its batch size",
        "dpfpl_server.federation.aggregation:aggregate",
        "noised = noise.add(total, stddev) if _1 else total",
        "divisor = privacy.sample_rate * privacy.nominal_site_size\n"
        "noised = noise.add(total, stddev / divisor) if _1 else total",
        (f"{SITE_UNIT_TESTS}::test_the_noise_on_the_sum_has_this_stddev_and_no_other",),
    ),
    (
        "whole sites: only the rounds that a site took part in are charged, at the amplified rate",
        "dpfpl_client.agent.core:SiteAgent._cost",
        "0 if self._ledger.events(experiment.name) else None",
        "experiment.rounds.local_steps",
        (f"{SITE_UNIT_TESTS}::test_sampled_rounds_are_all_charged_with_the_first",),
    ),
    (
        "whole sites: every site joins every round",
        "dpfpl_server.federation.rounds:DPFPLStrategy._sampled_nodes",
        "{sites[index]: self._nodes[sites[index]] for index in _1}",
        "dict(self._nodes)",
        (f"{SITE_UNIT_TESTS}::test_every_site_joins_every_round_with_the_public_chance[seeded]",),
    ),
    (
        "whole sites: the personal prompt is claimed to be private",
        "dpfpl_common.privacy_plan:_site_unit_events",
        "('prompt_recipient', 0.0, 1.0)",
        "('prompt_recipient', z, 1.0)",
        (f"{SITE_UNIT_TESTS}::test_one_event_a_round_whatever_the_local_steps",),
    ),
    (
        "replies are taken without the site's signature",
        "dpfpl_server.federation.replies:Replies._check",
        "self._signatures is not None",
        "False",
        (f"{SIGNATURES_TESTS}::test_U7_a_reply_that_the_sites_agent_did_not_sign_is_dropped",),
    ),
    (
        "the signature leaves the reply's content out",
        "dpfpl_common.wire.payloads:signed_text",
        "_content_digest(reply)",
        "b''",
        (
            f"{SIGNED_TEXT_TESTS}::test_whatever_is_changed_changes_the_signed_text",
            f"{SIGNATURES_TESTS}::test_U7_a_changed_update_is_dropped",
        ),
    ),
    (
        "the signature is not tied to the experiment",
        "dpfpl_common.wire.payloads:signed_text",
        "request.experiment.digest().encode()",
        "b''",
        (
            f"{SIGNED_TEXT_TESTS}::test_whatever_is_changed_changes_the_signed_text",
            f"{SIGNATURES_TESTS}::test_U7_the_same_reply_under_another_experiment_is_dropped",
        ),
    ),
    (
        "a median of single shares of noise passes for their sum",
        "dpfpl_common.experiment:_unsound",
        "rule != 'mean' and p.trust != 'local'",
        "rule != 'mean' and p.trust == 'central'",
        (f"{EXPERIMENT_TESTS}::test_robust_rules_need_local_trust_and_enough_sites",),
    ),
    (
        "a changed checkpoint is resumed from",
        "dpfpl_server.runs.folder:RunStore.load",
        "not whole or digest != sha256",
        "not whole",
        (f"{RUN_FOLDER_TESTS}::test_L2_a_checkpoint_that_is_not_what_was_saved_is_refused",),
    ),
    (
        "a second reply to the same message is aggregated too",
        "dpfpl_server.federation.exchange:exchange",
        "waiting.pop(message_id, '')",
        "_0 or answered.get(message_id, '')",
        (f"{STRATEGY_TESTS}::test_L5_a_duplicate_reply_is_counted_and_not_aggregated",),
    ),
    (
        "two server programs work on one run",
        "dpfpl_common.ops.heartbeat:Heartbeat.__enter__",
        "fcntl.flock(...)",
        "None",
        (f"{PULSE_TESTS}::test_a_holder_is_seen_a_second_one_refused_and_a_killed_one_gone",),
    ),
    (
        "whole sites: the examples are clipped, and not only their sum",
        "dpfpl_client.learning.learner:PromptLearner._train_as_a_whole",
        "return batch_gradient(...)",
        "whole = self.context(global_context, context)\n"
        "each = self._scorer.gradients(whole, examples, self._experiment.gradients).double().numpy()\n"
        "lengths = np.linalg.norm(each, axis=(1, 2), keepdims=True)\n"
        "factors = np.minimum(1.0, privacy.clipping_norm / np.maximum(lengths, 1e-300))\n"
        "gradient = (factors * each).sum(axis=0)\n"
        "return gradient / (privacy.sample_rate * privacy.nominal_site_size)",
        (f"{SITE_UNIT_TESTS}::test_a_site_clips_its_sum_and_not_its_examples",),
    ),
    (
        "central: the server's noise is left out",
        "dpfpl_server.federation.aggregation:aggregate",
        "noise.add(total, stddev / divisor / _1)",
        "total / 1.0",
        ("tests/server/test_strategy.py::test_the_servers_noise_moves_the_prompt_under_central_trust_only",),
    ),
    (
        "central: the server's noise is that of a mean over sites",
        "dpfpl_server.federation.aggregation:aggregate",
        "stddev / divisor",
        "_0 / len(experiment.sites)",
        ("tests/server/test_aggregation.py::test_central_noise_goes_to_the_sum_with_the_stddev_of_the_analysis",),
    ),
)
