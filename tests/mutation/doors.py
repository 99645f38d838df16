"""Ways to break what guards the operator's machine and the life of a federation: see mechanism.py for the fields."""

__all__ = ["DOORS"]

BROKEN_FOLDERS = "tests/client/models/test_broken_folders.py::test_DR5_"
DOORS_TEST = "tests/integration/test_doors.py::test_"
HTTP_LIMITS = "tests/common/test_http_limits.py::test_DR7_"
KEEPER = "tests/common/test_keeper.py::test_"
HUB = "tests/client/exporting/test_hub.py::test_"
KIT_POLICY = "tests/client/test_kit_policy.py::test_DR6_"
LEDGER_LOCKED = "tests/client/agent/test_ledger_locked.py::test_DR8_"
LOGS = "tests/common/test_log_rotation.py::test_DR9_"
MEMORY = "tests/client/serving/test_serve_memory.py::test_DR10_ten_large_images_at_once[RGBA-PNG]"
TEXT = "tests/common/test_text.py::test_DR11_"
TRACKING = "tests/server/test_tracking.py::test_"
STRATEGY = "tests/server/test_strategy.py::test_DR12_"
WITHDRAWN = "tests/client/test_node.py::test_DR12_"

DOORS = (
    (
        "DR1: a key that nobody registered is listened to",
        "dpfpl_server.sites.fleet_guard:FleetGuard._caller",
        "not self._is_registered(key)",
        "False",
        (DOORS_TEST + "DR1_fifty_megabytes_of_a_stranger_fill_neither_memory_nor_log[unregistered key, ActivateNode]",),
    ),
    (
        "DR2: what crashed a fifth time is left dead",
        "dpfpl_common.ops.processes:Keeper.look",
        "self._restarts == self._most",
        "self._restarts == 5",
        (KEEPER + "DR2_without_a_limit_it_is_started_for_ever",),
    ),
    (
        "DR2: a first start that was killed is gone on with",
        "dpfpl_server.flower_patches:whole_or_anew",
        "mark.exists() or not database.exists()",
        "not database.exists()",
        (DOORS_TEST + "DR2_a_first_start_that_is_killed_is_begun_anew",),
    ),
    (
        "DR3: whoever reaches the control port is served",
        "dpfpl_server.sites.control_secret:ControlGuard.__call__",
        "hmac.compare_digest(shown, self._secret)",
        "True",
        (DOORS_TEST + "DR3_another_user_of_the_machine_starts_nothing_and_takes_no_task",),
    ),
    (
        "DR4: a site may speak in another one's name",
        "dpfpl_server.sites.fleet_guard:_serve",
        "getattr(request, 'public_key', key) != key",
        "False",
        (DOORS_TEST + "DR4_a_stranger_cannot_take_an_offline_sites_place",),
    ),
    (
        "DR5: weights may lie outside the folder",
        "dpfpl_client.models.folder:_plain_name",
        "Path(name).name == name",
        "True",
        (BROKEN_FOLDERS + "an_index_that_names_weights_elsewhere_is_refused[../w.safetensors]",),
    ),
    (
        "DR5: weights may be no numbers",
        "dpfpl_client.models.files:_refuse_not_finite",
        "torch.isfinite(low) and torch.isfinite(high)",
        "True",
        (BROKEN_FOLDERS + "one_value_that_is_not_finite_is_found_in_any_tensor[text_model.final_layer_norm.bias-nan]",),
    ),
    (
        "DR6: a kit's looser rules hold without being accepted",
        "dpfpl_client.agent.policy_file:PolicyFile.begin_with",
        "stricter(template, policy)",
        "policy",
        (KIT_POLICY + "looser_rules_of_a_kit_are_listed_and_do_not_hold",),
    ),
    (
        "DR7: unfinished headers are waited for",
        "dpfpl_common.ops.http:BoundedProtocol._wait_for_headers",
        "self.loop.call_later(HEADER_SECONDS, self._drop)",
        "None",
        (HTTP_LIMITS + "a_slow_second_request_has_no_longer_than_the_first[page]",),
    ),
    (
        "DR8: a ledger that another program holds is given up until a restart",
        "dpfpl_client.agent.ledger.file:LedgerFile.append",
        "code in _BUSY",
        "False",
        (LEDGER_LOCKED + "a_long_lock_is_refused_for_the_time_being_and_needs_no_restart[2 s]",),
    ),
    (
        "DR9: logs are never cut",
        "dpfpl_common.ops.processes:rotate_log",
        "size <= most_bytes",
        "True",
        (LOGS + "a_week_of_rounds_leaves_a_bounded_log_with_its_end", LOGS + "a_rotation_keeps_the_end_and_the_writer"),
    ),
    (
        "DR10: every image is unpacked at once",
        "dpfpl_client.use.serving.app:_OneAtATime.__init__",
        "ThreadPoolExecutor(1, 'classify')",
        "ThreadPoolExecutor(8, 'classify')",
        (
            MEMORY,
            "tests/client/serving/test_serve_memory.py::test_DR10_who_goes_away_does_not_let_a_second_image_be_unpacked",
        ),
    ),
    (
        "DR11: a cell may begin a formula",
        "dpfpl_common.ops.text:harmless_cell",
        "text.lstrip(' ').startswith(FORMULA_STARTS)",
        "False",
        (TEXT + "no_cell_begins_a_formula",),
    ),
    (
        "DR11: escape sequences reach the terminal",
        "dpfpl_common.ops.text:printable",
        "char.isprintable()",
        "True",
        (TEXT + "nothing_that_steers_a_terminal_gets_through",),
    ),
    (
        "DR12: a run goes on below its quorum when a site is revoked",
        "dpfpl_server.federation.rounds:DPFPLStrategy._notice_withdrawn",
        "gone and left < least",
        "False",
        (STRATEGY + "without_a_quorum_the_operator_reads_at_once_what_to_do",),
    ),
    (
        "DR12: a revoked site tries for ever",
        "dpfpl_client.node.launch:end_for_good",
        "link.reason.startswith('KEY_WITHDRAWN')",
        "False",
        (WITHDRAWN + "a_revoked_site_reads_that_it_was_revoked",),
    ),
    (
        "TRACK1: a simulation's exact accuracies are sent to a tracking server",
        "dpfpl_server.cli.pilot:track",
        "mlflow is not None and not send_exact",
        "False",
        (TRACKING + "a_simulations_exact_accuracies_are_sent_only_where_that_is_said[in_process]",),
    ),
    (
        "TRACK2: a result of an unknown kind is sent to a tracking server",
        "dpfpl_server.runs.tracking:refuse_simulated",
        "result['transport'] != DEPLOYED",
        "result['transport'] == 'in_process'",
        (TRACKING + "a_simulations_exact_accuracies_are_sent_only_where_that_is_said[another]",),
    ),
    (
        "HUB1: a prompt is uploaded to a repository that the policy does not name",
        "dpfpl_client.use.exporting.export:check_publish",
        "repository not in policy.publish",
        "False",
        (HUB + "NI7_without_the_rule_nothing_is_uploaded_and_the_error_says_what_to_write",),
    ),
    (
        "HUB2: a new repository is public",
        "dpfpl_client.use.exporting.export:push_to_hub",
        "hub.create_repo(repository, private=not public, exist_ok=True)",
        "hub.create_repo(repository, private=False, exist_ok=True)",
        (HUB + "NI7_an_upload_is_private_holds_the_exports_files_alone_and_is_recorded",),
    ),
    (
        "HUB3: a repository that everybody may read is not noticed",
        "dpfpl_client.use.exporting.export:push_to_hub",
        "is_public and not public",
        "False",
        (HUB + "a_repository_that_everybody_reads_takes_a_word_more",),
    ),
    (
        "HUB5: the audit log repeats what was asked for, not who may read the repository",
        "dpfpl_client.use.exporting.export:push_to_hub",
        "not hub.model_info(repository).private",
        "public",
        (HUB + "a_private_repository_that_exists_stays_private_and_is_recorded_so",),
    ),
    (
        "HUB4: whatever lies in the folder is uploaded",
        "dpfpl_client.use.exporting.export:push_to_hub",
        "list(exported.files)",
        "None",
        (HUB + "NI7_an_upload_is_private_holds_the_exports_files_alone_and_is_recorded",),
    ),
)
