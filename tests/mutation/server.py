"""Ways to break what the server checks and keeps: see mechanism.py for the fields."""

__all__ = ["SERVER"]

STRATEGY = "tests/server/test_strategy.py::test_"
FOLDER = "tests/server/test_run_folder.py::test_"
SUPERVISE = "tests/server/test_supervise.py::test_"
EXCHANGE = "tests/server/test_exchange.py::test_"
ROBUST = "tests/server/test_robust.py::test_"
BAD_REPLY = (STRATEGY + "U1_U2_a_bad_reply_is_dropped_with_its_reason_and_the_round_goes_on",)
BELOW_QUORUM = (STRATEGY + "L3_below_the_quorum_nothing_is_kept_and_the_same_request_is_tried_again",)
KEPT_FIRST = (STRATEGY + "L2_a_round_is_called_done_only_once_it_is_kept",)

# An update's shape is checked twice, when it is read and against its request: no single break lets another one in.
SERVER = (
    (
        "server: an update that is not finite is added",
        "dpfpl_common.wire.payloads:check_context",
        "not np.all(np.isfinite(array))",
        "False",
        BAD_REPLY,
    ),
    (
        "server: an update of any norm is added",
        "dpfpl_server.federation.replies:Replies._check",
        "self._norm_cap",
        "1e30",
        BAD_REPLY,
    ),
    (
        "server: the norm's cap does not follow the operator's setting",
        "dpfpl_common.privacy_plan:largest_signal",
        "experiment.aggregation.largest_site",
        "100.0",
        (STRATEGY + "U2_the_operator_can_narrow_the_cap",),
    ),
    (
        "server: a site may answer in another's name",
        "dpfpl_server.federation.replies:Replies._check",
        "reply.site != site",
        "False",
        BAD_REPLY,
    ),
    (
        "server: an answer to another round counts",
        "dpfpl_common.wire.codec:check_reply",
        "_1 or reply.round != request.round",
        "False",
        BAD_REPLY,
    ),
    (
        "server: further records and keys pass",
        "dpfpl_common.wire.records:exact_keys",
        "key not in keys",
        "False",
        BAD_REPLY,
    ),
    (
        "server: another version of the protocol is taken",
        "dpfpl_common.wire.codec:check_version",
        "type(version) is not int or version != PROTOCOL_VERSION",
        "False",
        ("tests/client/test_upgrade.py::test_O4_an_agent_and_a_clientapp_of_other_protocols_say_so",),
    ),
    (
        "server: a refused reply counts towards the quorum",
        "dpfpl_server.federation.aggregation:aggregate_sum",
        "updates.count < needed",
        "updates.count == 0",
        BELOW_QUORUM,
    ),
    (
        "server: the quorum leaves the tolerated drop-outs out",
        "dpfpl_common.experiment:Experiment.min_sites",
        "self.privacy.tolerated_dropouts",
        "1",
        ("tests/common/test_trust.py::test_whoever_survives_and_whoever_colludes_the_unknown_noise_suffices",),
    ),
    (
        "server: every provisioned site is asked, on the list or not",
        "dpfpl_server.federation.rounds:DPFPLStrategy.__init__",
        "{site: nodes[site] for site in experiment.sites}",
        "dict(nodes)",
        (STRATEGY + "U8_one_message_per_site_and_round_and_only_to_the_list",),
    ),
    (
        "server: a site that is not on the list takes part",
        "dpfpl_client.agent.core:SiteAgent._admit",
        "self._name not in experiment.sites",
        "False",
        ("tests/client/agent/test_core.py::test_refused_before_any_charge_and_any_computation",),
    ),
    (
        "server: a late reply is added to the next round",
        "dpfpl_server.federation.exchange:exchange",
        "waiting.pop(message_id, '')",
        "_0 or missed.pop(message_id, '')",
        (STRATEGY + "L5_a_late_reply_is_counted_and_changes_nothing",),
    ),
    (
        "server: a round is asked for again although only refusals came",
        "dpfpl_server.federation.rounds:DPFPLStrategy._complete_round",
        "attempt == attempts or replies.hopeless",
        "attempt == attempts",
        (STRATEGY + "refusals_are_not_asked_again",),
    ),
    (
        "server: a round with missing sites starts at once",
        "dpfpl_server.federation.rounds:DPFPLStrategy._wait_for_sites",
        "not missing or _1",
        "True",
        (STRATEGY + "L4_missing_sites_are_waited_for_visibly_and_for_a_bounded_time",),
    ),
    (
        "checkpoint: a round is not kept",
        "dpfpl_server.federation.rounds:DPFPLStrategy._close_round",
        "self._on_checkpoint(...)",
        "None",
        KEPT_FIRST,
    ),
    (
        "checkpoint: a round is called done before it is kept",
        "dpfpl_server.federation.rounds:DPFPLStrategy._close_round",
        "self._on_checkpoint(_1)\nself._on_status(_2)",
        "self._on_status(_2)\nself._on_checkpoint(_1)",
        KEPT_FIRST,
    ),
    (
        "checkpoint: what is kept is not synced to the disk",
        "dpfpl_server.runs.store:RunStore.save",
        "self._writing()",
        "self._writing(durable=False)",
        (FOLDER + "L2_a_completed_round_is_synced_to_the_disk_and_an_event_need_not_be",),
    ),
    (
        "checkpoint: the optimizer starts anew after a resume",
        "dpfpl_server.runs.store:RunStore.load",
        "OptimizerState(first, second, steps)",
        "OptimizerState.zeros(shape)",
        (FOLDER + "a_checkpoint_comes_back_as_it_was",),
    ),
    (
        "checkpoint: another configuration is resumed",
        "dpfpl_server.runs.store:RunStore.load",
        "configuration != experiment.digest()",
        "False",
        (FOLDER + "a_checkpoint_of_another_configuration_is_refused",),
    ),
    (
        "resume: a run that decided to end is tried again and again",
        "dpfpl_server.runs.supervise:supervise",
        "outcome != 'crashed'",
        "outcome == 'stopped'",
        (SUPERVISE + "a_run_that_decided_to_end_is_not_tried_again",),
    ),
    (
        "resume: a run that was cut off is given up",
        "dpfpl_server.runs.supervise:supervise",
        "outcome != 'crashed' or restarts == limits.restarts",
        "True",
        (SUPERVISE + "L2_a_run_that_was_cut_off_goes_on_in_a_new_one",),
    ),
    (
        "resume: a second Flower run is started beside one that lives",
        "dpfpl_server.runs.supervise:_still_running",
        "folder.server_life().alive",
        "False",
        (SUPERVISE + "a_run_without_a_supervisor_is_taken_up_again_not_doubled",),
    ),
    (
        "exchange: a silent site is not asked again",
        "dpfpl_server.federation.exchange",
        "ASK_AGAIN_AT = 0.5",
        "ASK_AGAIN_AT = 2.0",
        (STRATEGY + "L6_a_lost_reply_is_asked_for_again_and_the_round_is_the_same",),
    ),
    (
        "exchange: a silent site is asked again and again",
        "dpfpl_server.federation.exchange:exchange",
        "set(waiting.values()) - outcome.again",
        "set(waiting.values())",
        (EXCHANGE + "L6_a_silent_site_is_asked_once_more_at_half_of_the_time",),
    ),
    (
        "exchange: a reply that broke off is not asked for again",
        "dpfpl_server.federation.exchange:_broke_off",
        "return _1",
        "return False",
        (EXCHANGE + "L6_a_site_whose_reply_broke_off_is_asked_again_at_once_but_only_once",),
    ),
    (
        "exchange: a look that outlasts the deadline is the last one",
        "dpfpl_server.federation.exchange:exchange",
        "passed >= deadline_s",
        "clock() - start >= deadline_s",
        (EXCHANGE + "what_came_while_a_look_took_long_is_looked_for_once_more",),
    ),
    (
        "exchange: a part that the server has already ends the sending of a reply",
        "dpfpl_client.node.flower_patches:_not_broken_off.push_all.push_unless_there",
        "ObjectPushError",
        "ZeroDivisionError",
        ("tests/client/test_warm_node.py::test_L6_a_reply_stays_whole_where_the_receipt_of_a_part_is_lost",),
    ),
    (
        "patience: an untrusted certificate is tried again and again",
        "dpfpl_server.flower_patches:bear_broken_connections.really_gives_up",
        "'certificate' in text or _1",
        "_1",
        (EXCHANGE + "a_connection_that_closed_within_tls_is_tried_again_and_an_untrusted_one_is_not",),
    ),
    (
        "provision: a site is registered before its kit's place was tried",
        "dpfpl_server.sites.provision:_provision",
        "_require_writable(...)",
        "None",
        ("tests/server/test_server_cli.py::test_provision_in_a_place_that_it_cannot_use_is_one_clear_error",),
    ),
    (
        "flower: a site starts under another line of it",
        "dpfpl_client.node.supernode:supernode_command",
        "require_flower()",
        "None",
        ("tests/client/test_upgrade.py::test_O5_neither_side_starts_under_another_line_of_flower",),
    ),
    (
        "robust: the trimmed mean trims nothing",
        "dpfpl_server.federation.robust:trimmed_mean",
        "ordered[trim:len(updates) - trim]",
        "ordered",
        (ROBUST + "the_trimmed_mean_is_flowers",),
    ),
    (
        "robust: Krum counts every distance, the hostile ones too",
        "dpfpl_server.federation.robust:krum",
        "len(updates) - hostile - 2",
        "len(updates) - 1",
        (ROBUST + "krum_is_not_drawn_towards_a_far_hostile_update",),
    ),
    (
        "robust: Krum chooses among too few",
        "dpfpl_server.federation.robust:krum",
        "2 * hostile + 3",
        "3",
        (ROBUST + "too_few_updates_abandon_the_round",),
    ),
    (
        "sites: a revoked site stays registered",
        "dpfpl_server.sites.superlink:register_sites",
        "by_key.values()",
        "()",
        ("tests/server/test_sites_admin.py::test_a_revoked_site_is_refused_at_once_and_others_stay",),
    ),
)
