"""Ways to break what the server checks and keeps: name, file, text that occurs exactly once, what it becomes, tests."""

__all__ = ["SERVER"]

PACKAGE = "server/src/dpfpl_server/"
COMMON = "common/src/dpfpl_common/"
AGENT = "client/src/dpfpl_client/agent/"
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
        COMMON + "payload.py",
        "    if not np.all(np.isfinite(array)):\n",
        "    if False:\n",
        BAD_REPLY,
    ),
    (
        "server: an update of any norm is added",
        PACKAGE + "replies.py",
        " > self._norm_cap:\n",
        " > 1e30:\n",
        BAD_REPLY,
    ),
    (
        "server: the norm's cap does not follow the operator's setting",
        COMMON + "trust.py",
        "    return privacy.clipping_norm * experiment.aggregation.largest_site / privacy.sample_rate\n",
        "    return privacy.clipping_norm * 100.0 / privacy.sample_rate\n",
        (STRATEGY + "U2_the_operator_can_narrow_the_cap",),
    ),
    (
        "server: a site may answer in another's name",
        PACKAGE + "replies.py",
        "        if reply.site != site:\n",
        "        if False:\n",
        BAD_REPLY,
    ),
    (
        "server: an answer to another round counts",
        COMMON + "fields.py",
        "    if type(reply.round) is not int or reply.round != request.round:\n",
        "    if False:\n",
        BAD_REPLY,
    ),
    (
        "server: further records and keys pass",
        COMMON + "record_names.py",
        "        if key not in keys:\n",
        "        if False:\n",
        BAD_REPLY,
    ),
    (
        "server: another version of the protocol is taken",
        COMMON + "fields.py",
        "    if type(version) is not int or version != PROTOCOL_VERSION:\n",
        "    if False:\n",
        ("tests/client/test_upgrade.py::test_O4_an_agent_and_a_clientapp_of_other_protocols_say_so",),
    ),
    (
        "server: a refused reply counts towards the quorum",
        PACKAGE + "aggregation.py",
        "    if updates.count < needed:\n",
        "    if updates.count == 0:\n",
        BELOW_QUORUM,
    ),
    (
        "server: the quorum leaves the tolerated drop-outs out",
        COMMON + "experiment.py",
        "        return self.rounds.min_sites or len(self.sites) - self.privacy.tolerated_dropouts\n",
        "        return self.rounds.min_sites or len(self.sites) - 1\n",
        ("tests/common/test_trust.py::test_whoever_survives_and_whoever_colludes_the_unknown_noise_suffices",),
    ),
    (
        "server: every provisioned site is asked, on the list or not",
        PACKAGE + "strategy.py",
        "        self._nodes = {site: nodes[site] for site in experiment.sites}\n",
        "        self._nodes = dict(nodes)\n",
        (STRATEGY + "U8_one_message_per_site_and_round_and_only_to_the_list",),
    ),
    (
        "server: a site that is not on the list takes part",
        AGENT + "core.py",
        "        if self._name not in experiment.sites:\n",
        "        if False:\n",
        ("tests/client/agent/test_core.py::test_refused_before_any_charge_and_any_computation",),
    ),
    (
        "server: a late reply is added to the next round",
        PACKAGE + "exchange.py",
        '            site = waiting.pop(message_id, "")\n',
        '            site = waiting.pop(message_id, "") or missed.pop(message_id, "")\n',
        (STRATEGY + "L5_a_late_reply_is_counted_and_changes_nothing",),
    ),
    (
        "server: a round is asked for again although only refusals came",
        PACKAGE + "strategy.py",
        "                if attempt == attempts or replies.hopeless:\n",
        "                if attempt == attempts:\n",
        (STRATEGY + "refusals_are_not_asked_again",),
    ),
    (
        "server: a round with missing sites starts at once",
        PACKAGE + "strategy.py",
        "            if not missing or (connected >= self.experiment.min_sites and number > 1):\n",
        "            if True:\n",
        (STRATEGY + "L4_missing_sites_are_waited_for_visibly_and_for_a_bounded_time",),
    ),
    (
        "checkpoint: a round is not kept",
        PACKAGE + "strategy.py",
        "        self._on_checkpoint(self.checkpoint)\n",
        "",
        KEPT_FIRST,
    ),
    (
        "checkpoint: a round is called done before it is kept",
        PACKAGE + "strategy.py",
        '        self._on_checkpoint(self.checkpoint)\n        self._on_status({"phase": "ROUND_DONE", **entry})\n',
        '        self._on_status({"phase": "ROUND_DONE", **entry})\n        self._on_checkpoint(self.checkpoint)\n',
        KEPT_FIRST,
    ),
    (
        "checkpoint: what is kept is not synced to the disk",
        PACKAGE + "run_store.py",
        "        with self._writing() as database:\n            ((known,),)",
        "        with self._writing(durable=False) as database:\n            ((known,),)",
        (FOLDER + "L2_a_completed_round_is_synced_to_the_disk_and_an_event_need_not_be",),
    ),
    (
        "checkpoint: the optimizer starts anew after a resume",
        PACKAGE + "run_store.py",
        "                optimizer=OptimizerState(first, second, steps),\n",
        "                optimizer=OptimizerState.zeros(shape),\n",
        (FOLDER + "a_checkpoint_comes_back_as_it_was",),
    ),
    (
        "checkpoint: another configuration is resumed",
        PACKAGE + "run_store.py",
        "        if configuration != experiment.digest():\n",
        "        if False:\n",
        (FOLDER + "a_checkpoint_of_another_configuration_is_refused",),
    ),
    (
        "resume: a run that decided to end is tried again and again",
        PACKAGE + "supervise.py",
        '        if outcome != "crashed" or restarts == limits.restarts:\n',
        '        if outcome == "stopped" or restarts == limits.restarts:\n',
        (SUPERVISE + "a_run_that_decided_to_end_is_not_tried_again",),
    ),
    (
        "resume: a run that was cut off is given up",
        PACKAGE + "supervise.py",
        '        if outcome != "crashed" or restarts == limits.restarts:\n',
        "        if True:\n",
        (SUPERVISE + "L2_a_run_that_was_cut_off_goes_on_in_a_new_one",),
    ),
    (
        "resume: a second Flower run is started beside one that lives",
        PACKAGE + "supervise.py",
        "            if folder.server_life().alive:\n                return attempt\n",
        "            if False:\n                return attempt\n",
        (SUPERVISE + "a_run_without_a_supervisor_is_taken_up_again_not_doubled",),
    ),
    (
        "exchange: a silent site is not asked again",
        PACKAGE + "exchange.py",
        "ASK_AGAIN_AT = 0.5\n",
        "ASK_AGAIN_AT = 2.0\n",
        (STRATEGY + "L6_a_lost_reply_is_asked_for_again_and_the_round_is_the_same",),
    ),
    (
        "exchange: a silent site is asked again and again",
        PACKAGE + "exchange.py",
        "            _ask_again(grid, set(waiting.values()) - outcome.again, again, waiting, outcome)\n",
        "            _ask_again(grid, set(waiting.values()), again, waiting, outcome)\n",
        (EXCHANGE + "L6_a_silent_site_is_asked_once_more_at_half_of_the_time",),
    ),
    (
        "exchange: a reply that broke off is not asked for again",
        PACKAGE + "exchange.py",
        "    return bool(reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE)\n",
        "    return False\n",
        (EXCHANGE + "L6_a_site_whose_reply_broke_off_is_asked_again_at_once_but_only_once",),
    ),
    (
        "exchange: a look that outlasts the deadline is the last one",
        PACKAGE + "exchange.py",
        "        if not waiting or passed >= deadline_s:",
        "        if not waiting or clock() - start >= deadline_s:",
        (EXCHANGE + "what_came_while_a_look_took_long_is_looked_for_once_more",),
    ),
    (
        "exchange: a part that the server has already ends the sending of a reply",
        "client/src/dpfpl_client/node/flower_patches.py",
        "            with contextlib.suppress(ObjectPushError):\n",
        "            with contextlib.suppress(ZeroDivisionError):\n",
        ("tests/client/test_warm_node.py::test_L6_a_reply_stays_whole_where_the_receipt_of_a_part_is_lost",),
    ),
    (
        "patience: an untrusted certificate is tried again and again",
        "server/src/dpfpl_server/flower_patches.py",
        '("certificate" in text or not any(sign in text for sign in _BROKEN))',
        "(not any(sign in text for sign in _BROKEN))",
        (EXCHANGE + "a_connection_that_closed_within_tls_is_tried_again_and_an_untrusted_one_is_not",),
    ),
    (
        "provision: a site is registered before its kit's place was tried",
        PACKAGE + "provision.py",
        "    for name in wanted:\n        _require_writable(request.kit_path(name))\n",
        "",
        ("tests/server/test_server_cli.py::test_provision_in_a_place_that_it_cannot_use_is_one_clear_error",),
    ),
    (
        "flower: a site starts under another line of it",
        "client/src/dpfpl_client/node/supernode.py",
        "    require_flower()\n",
        "",
        ("tests/client/test_upgrade.py::test_O5_neither_side_starts_under_another_line_of_flower",),
    ),
    (
        "robust: the trimmed mean trims nothing",
        PACKAGE + "robust.py",
        "    return np.asarray(ordered[trim : len(updates) - trim].mean(axis=0))",
        "    return np.asarray(ordered.mean(axis=0))",
        (ROBUST + "the_trimmed_mean_is_flowers",),
    ),
    (
        "robust: Krum counts every distance, the hostile ones too",
        PACKAGE + "robust.py",
        "    closest = len(updates) - hostile - 2\n",
        "    closest = len(updates) - 1\n",
        (ROBUST + "krum_is_not_drawn_towards_a_far_hostile_update",),
    ),
    (
        "robust: Krum chooses among too few",
        PACKAGE + "robust.py",
        "    _enough(updates, 2 * hostile + 3)\n",
        "    _enough(updates, 3)\n",
        (ROBUST + "too_few_updates_abandon_the_round",),
    ),
    (
        "sites: a revoked site stays registered",
        PACKAGE + "superlink.py",
        "        for node in by_key.values():\n            control.unregister(node.node_id)\n",
        "",
        ("tests/server/test_sites_admin.py::test_a_revoked_site_is_refused_at_once_and_others_stay",),
    ),
)
