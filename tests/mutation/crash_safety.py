"""Ways to break crash-safety, wire and socket: name, file, text there, what it becomes, tests."""

__all__ = ["CRASH_SAFETY"]

ATTACK_ROWS_TESTS = "tests/attacks/test_attack_rows.py"
CORE = "client/src/dpfpl_client/agent/core.py"
DURABLE = "common/src/dpfpl_common/ops/files.py"
FIELDS = "common/src/dpfpl_common/wire/codec.py"
KILL_POINTS_TESTS = "tests/faults/test_kill_points.py"
LEDGER_FILE = "client/src/dpfpl_client/agent/ledger/file.py"
PAYLOAD = "common/src/dpfpl_common/wire/payloads.py"
POWER_LOSS_TESTS = "tests/faults/test_power_loss.py"
RPC_INPUT_TESTS = "tests/client/agent/test_rpc_input.py"
SEPARATION_TESTS = "tests/attacks/test_separation.py"
SERVICE = "client/src/dpfpl_client/agent/service.py"
SITE_FAULTS_TESTS = "tests/faults/test_site_faults.py"
STORAGE_FAULTS_TESTS = "tests/faults/test_storage_faults.py"
STORE = "client/src/dpfpl_client/agent/store.py"
WIRE_TESTS = "tests/common/test_wire.py"

CRASH_SAFETY = (
    (
        "crash: reserved after the computation",
        CORE,
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n"
        "        record = self._compute(learner, request, digest, policy, started)\n",
        "        record = self._compute(learner, request, digest, policy, started)\n"
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n",
        (
            f"{KILL_POINTS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[before_noise]",
        ),
    ),
    (
        "crash: committed before the record is written",
        CORE,
        "        self._store.write(experiment.name, request.round, record)\n"
        "        self._ledger.commit(sequence, record.digest())\n",
        "        self._ledger.commit(sequence, record.digest())\n"
        "        self._store.write(experiment.name, request.round, record)\n",
        (
            f"{KILL_POINTS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[within_record]",
        ),
    ),
    (
        "crash: a release found after a crash is not committed",
        CORE,
        "                if not charge.release_digest:\n"
        "                    self._ledger.commit(charge.sequence, record.digest())\n",
        "",
        (
            f"{KILL_POINTS_TESTS}::test_F4_F5_killed_after_the_record_the_very_bytes_are_served_and_charged_once[after_record]",
        ),
    ),
    (
        "crash: an interrupted round is computed anew without a charge",
        CORE,
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n",
        "        before = self._ledger.find(experiment.name, request.round)\n"
        "        sequence = before.sequence if before else self._ledger.reserve(\n"
        "            experiment.name, request.round, digest, events\n"
        "        )\n",
        (
            f"{KILL_POINTS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[after_reserve]",
        ),
    ),
    (
        "crash: a release is computed anew although it is stored",
        CORE,
        "            if record is not None and record.request_digest == digest:\n",
        "            if record is not None and record.request_digest == digest and charge.release_digest:\n",
        (
            f"{KILL_POINTS_TESTS}::test_F4_F5_killed_after_the_record_the_very_bytes_are_served_and_charged_once[after_record]",
        ),
    ),
    (
        "crash: a record is written in place",
        DURABLE,
        '    temporary = path.with_name(f".{path.name}.tmp")\n',
        "    temporary = path\n",
        (
            f"{KILL_POINTS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[within_record]",
        ),
    ),
    (
        "power: a record's content is not synced",
        DURABLE,
        "            os.fsync(descriptor)\n        finally:\n            os.close(descriptor)\n        temporary",
        "        finally:\n            os.close(descriptor)\n        temporary",
        (
            f"{POWER_LOSS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",
            f"{POWER_LOSS_TESTS}::test_F7_power_loss_at_any_moment",
        ),
    ),
    (
        "power: a record's name is not synced",
        DURABLE,
        "        raise\n    fsync_folder(path.parent)\n",
        "        raise\n",
        (
            f"{POWER_LOSS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",
            f"{POWER_LOSS_TESTS}::test_F7_power_loss_at_any_moment",
        ),
    ),
    (
        "power: a new folder's name is not synced",
        DURABLE,
        "        path.mkdir(mode=mode, exist_ok=True)\n        fsync_folder(path.parent)\n",
        "        path.mkdir(mode=mode, exist_ok=True)\n",
        (
            f"{POWER_LOSS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",
            f"{POWER_LOSS_TESTS}::test_F7_power_loss_at_any_moment",
        ),
    ),
    (
        "power: the ledger is written as Flower's databases are",
        LEDGER_FILE,
        '        self.execute("PRAGMA synchronous=FULL")',
        '        self.execute("PRAGMA synchronous=NORMAL")',
        (f"{POWER_LOSS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",),
    ),
    (
        "disk: the ledger goes on after a sync that failed",
        LEDGER_FILE,
        "            self._broken = True\n            if isinstance",
        "            if isinstance",
        (
            f"{STORAGE_FAULTS_TESTS}::test_F9_after_a_sync_that_failed_once_nothing_is_released_until_the_agent_is_started_anew",
        ),
    ),
    (
        "disk: the store goes on after a sync that failed",
        STORE,
        "            self._broken = True\n            raise",
        "            raise",
        (
            f"{STORAGE_FAULTS_TESTS}::test_F9_after_a_sync_that_failed_once_nothing_is_released_until_the_agent_is_started_anew",
        ),
    ),
    (
        "disk: a full disk is a broken one",
        DURABLE,
        "    return error.errno in (errno.ENOSPC, errno.EDQUOT)",
        "    return False",
        (f"{STORAGE_FAULTS_TESTS}::test_F10_a_full_disk_refuses_keeps_the_prompt_and_recovers",),
    ),
    (
        "disk: what was begun stays on a full disk",
        DURABLE,
        "        temporary.unlink(missing_ok=True)\n        raise",
        "        raise",
        (f"{STORAGE_FAULTS_TESTS}::test_F10_a_full_disk_refuses_keeps_the_prompt_and_recovers",),
    ),
    (
        "stop: a computing agent may take as long as it likes",
        SERVICE,
        "        idle = server.stop(grace_s)\n",
        "        idle = server.stop(600.0)\n",
        (f"{SITE_FAULTS_TESTS}::test_F15_asked_to_stop_while_it_trains_it_ends_within_ten_seconds_and_cleanly[False]",),
    ),
    (
        "wire: values that are not finite pass",
        PAYLOAD,
        "    if not np.all(np.isfinite(array)):\n",
        "    if False:\n",
        (f"{RPC_INPUT_TESTS}::test_I2_values_that_are_no_context_are_refused_before_any_charge",),
    ),
    (
        "wire: another shape passes",
        FIELDS,
        "    if tuple(declared) != shape:\n",
        "    if False:\n",
        (f"{RPC_INPUT_TESTS}::test_I3_other_shapes_are_refused_also_those_that_numpy_would_broadcast",),
    ),
    (
        "wire: data of another length are read",
        FIELDS,
        "    if len(data) != size:\n",
        "    if False:\n",
        (f"{RPC_INPUT_TESTS}::test_I3_other_types_and_sizes_are_refused",),
    ),
    (
        "wire: no cap on a message's size",
        SERVICE,
        '    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),\n',
        '    ("grpc.max_receive_message_length", -1),\n',
        (f"{RPC_INPUT_TESTS}::test_I5_a_message_above_the_cap_is_not_read",),
    ),
    (
        "wire: unknown fields pass",
        "common/src/dpfpl_common/wire/codec.py",
        "    if len(UnknownFieldSet(message)) > 0:\n",
        "    if False:\n",
        (f"{WIRE_TESTS}::test_unknown_fields_are_refused_nested_ones_too",),
    ),
    (
        "wire: another version of the protocol is spoken with",
        FIELDS,
        "    if type(version) is not int or version != PROTOCOL_VERSION:\n",
        "    if False:\n",
        (f"{RPC_INPUT_TESTS}::test_I7_another_protocol_or_model_is_refused_naming_what_is_expected",),
    ),
    (
        "wire: a round outside the experiment passes",
        PAYLOAD,
        " or not low <= number <= high:\n",
        ":\n",
        (f"{RPC_INPUT_TESTS}::test_I6_rounds_that_do_not_exist_are_refused",),
    ),
    (
        "wire: the text of an error inside leaves",
        SERVICE,
        "                reply = wire.encode_refusal(internal_refusal(incident))\n",
        "                import sys\n"
        "\n"
        '                refusal = agent_pb2.Refusal(code="INTERNAL", rule=f"{sys.exception()} '
        'incident {incident}")\n'
        "                reply = agent_pb2.Reply(protocol_version=1, refusal=refusal)\n",
        (f"{RPC_INPUT_TESTS}::test_I13_the_text_of_an_error_inside_stays_inside",),
    ),
    (
        "socket: any caller is let in",
        SERVICE,
        "        if self._credential.matches(details.invocation_metadata):\n",
        "        if True:\n",
        (f"{ATTACK_ROWS_TESTS}::test_A12_without_the_token_the_socket_says_nothing_and_other_users_do_not_reach_it",),
    ),
    (
        "socket: others may connect",
        "client/src/dpfpl_client/agent/endpoint.py",
        "        self._path.chmod(0o600 if self._group is None else 0o660)",
        "        self._path.chmod(0o666)",
        (f"{ATTACK_ROWS_TESTS}::test_A12_without_the_token_the_socket_says_nothing_and_other_users_do_not_reach_it",),
    ),
    (
        "socket: an address for everybody is taken",
        SERVICE,
        "private_host(self._wanted, self._allow_any)",
        "private_host(self._wanted, True)",
        (f"{ATTACK_ROWS_TESTS}::test_A12_an_address_that_strangers_reach_is_refused",),
    ),
    (
        "users: the agent's log can be read by the operator's code",
        "client/src/dpfpl_client/node/launch.py",
        '    (folder / "logs").mkdir(exist_ok=True, mode=0o700)\n',
        '    (folder / "logs").mkdir(exist_ok=True, mode=0o755)\n',
        (f"{SEPARATION_TESTS}::test_A5_hostile_code_reads_nothing_of_the_site",),
    ),
)
