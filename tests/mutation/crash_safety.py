"""Ways to break crash-safety, wire and socket: see mechanism.py for the fields."""

__all__ = ["CRASH_SAFETY"]

ATTACK_ROWS_TESTS = "tests/attacks/test_attack_rows.py"
DISKS_TESTS = "tests/faults/test_disks.py"
KILLS_TESTS = "tests/faults/test_kills.py"
RPC_INPUT_TESTS = "tests/client/agent/test_rpc_input.py"
SEPARATION_TESTS = "tests/attacks/test_separation.py"
WIRE_TESTS = "tests/common/test_wire.py"

CRASH_SAFETY = (
    (
        "crash: reserved after the computation",
        "dpfpl_client.agent.core:SiteAgent._train",
        "sequence = _1\nrecord = _2",
        "record = _2\nsequence = _1",
        (
            f"{KILLS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[before_noise]",
        ),
    ),
    (
        "crash: committed before the record is written",
        "dpfpl_client.agent.core:SiteAgent._train",
        "self._store.write(_1, _2, _3)\nself._ledger.commit(_4, _5, vote=_6)",
        "self._ledger.commit(_4, _5, vote=_6)\nself._store.write(_1, _2, _3)",
        (
            f"{KILLS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[within_record]",
        ),
    ),
    (
        "crash: a release found after a crash is not committed",
        "dpfpl_client.agent.core:SiteAgent._known_release",
        "not charge.release_digest",
        "False",
        (
            f"{KILLS_TESTS}::test_F4_F5_killed_after_the_record_the_very_bytes_are_served_and_charged_once[after_record]",
        ),
    ),
    (
        "crash: an interrupted round is computed anew without a charge",
        "dpfpl_client.agent.core:SiteAgent._train",
        "sequence = _1",
        "before = self._ledger.find(experiment.name, request.round)\nsequence = before.sequence if before else _1",
        (
            f"{KILLS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[after_reserve]",
        ),
    ),
    (
        "crash: a release is computed anew although it is stored",
        "dpfpl_client.agent.core:SiteAgent._known_release",
        "record is not None and record.request_digest == digest",
        "_0 and charge.release_digest",
        (
            f"{KILLS_TESTS}::test_F4_F5_killed_after_the_record_the_very_bytes_are_served_and_charged_once[after_record]",
        ),
    ),
    (
        "crash: a record is written in place",
        "dpfpl_common.ops.files:write_durably",
        "temporary = _1",
        "temporary = path",
        (
            f"{KILLS_TESTS}::test_F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used[within_record]",
        ),
    ),
    (
        "power: a record's content is not synced",
        "dpfpl_common.ops.files:write_durably",
        "os.fsync(descriptor)",
        "None",
        (
            f"{DISKS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",
            f"{DISKS_TESTS}::test_F7_power_loss_at_any_moment",
        ),
    ),
    (
        "power: a record's name is not synced",
        "dpfpl_common.ops.files:write_durably",
        "fsync_folder(path.parent)",
        "None",
        (
            f"{DISKS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",
            f"{DISKS_TESTS}::test_F7_power_loss_at_any_moment",
        ),
    ),
    (
        "power: a new folder's name is not synced",
        "dpfpl_common.ops.files:make_folder_durably",
        "fsync_folder(path.parent)",
        "None",
        (
            f"{DISKS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",
            f"{DISKS_TESTS}::test_F7_power_loss_at_any_moment",
        ),
    ),
    (
        "power: the ledger is written as Flower's databases are",
        "dpfpl_client.agent.ledger.file:LedgerFile.__init__",
        "'PRAGMA synchronous=FULL'",
        "'PRAGMA synchronous=NORMAL'",
        (f"{DISKS_TESTS}::test_F8_the_ledger_is_synced_before_the_release_is_sent",),
    ),
    (
        "disk: the ledger goes on after a sync that failed",
        "dpfpl_client.agent.ledger.file:LedgerFile.append",
        "self._broken = True",
        "pass",
        (f"{DISKS_TESTS}::test_F9_after_a_sync_that_failed_once_nothing_is_released_until_the_agent_is_started_anew",),
    ),
    (
        "disk: the store goes on after a sync that failed",
        "dpfpl_client.agent.store:DiskStore._write",
        "self._broken = True",
        "pass",
        (f"{DISKS_TESTS}::test_F9_after_a_sync_that_failed_once_nothing_is_released_until_the_agent_is_started_anew",),
    ),
    (
        "disk: a full disk is a broken one",
        "dpfpl_common.ops.files:is_full",
        "return _1",
        "return False",
        (f"{DISKS_TESTS}::test_F10_a_full_disk_refuses_keeps_the_prompt_and_recovers",),
    ),
    (
        "disk: what was begun stays on a full disk",
        "dpfpl_common.ops.files:write_durably",
        "temporary.unlink(...)",
        "None",
        (f"{DISKS_TESTS}::test_F10_a_full_disk_refuses_keeps_the_prompt_and_recovers",),
    ),
    (
        "stop: a computing agent may take as long as it likes",
        "dpfpl_client.agent.service:serve",
        "server.stop(grace_s)",
        "server.stop(600.0)",
        (f"{KILLS_TESTS}::test_F15_asked_to_stop_while_it_trains_it_ends_within_ten_seconds_and_cleanly[False]",),
    ),
    (
        "wire: values that are not finite pass",
        "dpfpl_common.wire.payloads:check_context",
        "not np.all(np.isfinite(array))",
        "False",
        (f"{RPC_INPUT_TESTS}::test_I2_to_I9_what_no_honest_server_sends_is_refused[I2 not a number]",),
    ),
    (
        "wire: another shape passes",
        "dpfpl_common.wire.payloads:check_context",
        "array.shape != shape",
        "False",
        (f"{RPC_INPUT_TESTS}::test_I2_to_I9_what_no_honest_server_sends_is_refused[I3 shape 1 128]",),
    ),
    (
        "wire: data of another length are read",
        "dpfpl_common.wire.codec:_read_array",
        "len(array.data) != size",
        "False",
        (f"{RPC_INPUT_TESTS}::test_I2_to_I9_what_no_honest_server_sends_is_refused[I3 <f8]",),
    ),
    (
        "wire: no cap on a message's size",
        "dpfpl_client.agent.service",
        "('grpc.max_receive_message_length', MAX_MESSAGE_BYTES)",
        "('grpc.max_receive_message_length', -1)",
        (f"{RPC_INPUT_TESTS}::test_I5_a_message_above_the_cap_is_not_read",),
    ),
    (
        "wire: unknown fields pass",
        "dpfpl_common.wire.codec:_refuse_unknown_fields",
        "known.ByteSize() != message.ByteSize()",
        "False",
        (f"{WIRE_TESTS}::test_unknown_fields_are_refused_nested_ones_too",),
    ),
    (
        "wire: another version of the protocol is spoken with",
        "dpfpl_common.wire.codec:check_version",
        "type(version) is not int or version != PROTOCOL_VERSION",
        "False",
        (f"{RPC_INPUT_TESTS}::test_I2_to_I9_what_no_honest_server_sends_is_refused[I7 another protocol]",),
    ),
    (
        "wire: a round outside the experiment passes",
        "dpfpl_common.wire.payloads:_check_round",
        "not low <= number <= high",
        "False",
        (f"{RPC_INPUT_TESTS}::test_I2_to_I9_what_no_honest_server_sends_is_refused[I6 round -1]",),
    ),
    (
        "wire: the text of an error inside leaves",
        "dpfpl_client.agent.service:answer",
        "reply = wire.encode_refusal(internal_refusal(incident))",
        "import sys\n"
        "refusal = agent_pb2.Refusal(code='INTERNAL', message=f'{sys.exception()} incident {incident}')\n"
        "reply = agent_pb2.Reply(protocol_version=1, refusal=refusal)",
        (f"{RPC_INPUT_TESTS}::test_I13_the_text_of_an_error_inside_stays_inside",),
    ),
    (
        "socket: any caller is let in",
        "dpfpl_client.agent.service:_CredentialCheck.intercept_service",
        "self._credential.matches(...)",
        "True",
        (f"{ATTACK_ROWS_TESTS}::test_A12_without_the_token_the_socket_says_nothing_and_other_users_do_not_reach_it",),
    ),
    (
        "socket: others may connect",
        "dpfpl_client.agent.endpoint:SocketFile.protect",
        "0o600 if self._group is None else 0o660",
        "0o666",
        (f"{ATTACK_ROWS_TESTS}::test_A12_without_the_token_the_socket_says_nothing_and_other_users_do_not_reach_it",),
    ),
    (
        "socket: an address for everybody is taken",
        "dpfpl_client.agent.endpoint:private_host",
        "all(...)",
        "True",
        (f"{ATTACK_ROWS_TESTS}::test_A12_an_address_that_strangers_reach_is_refused",),
    ),
    (
        "users: others can look for the agent's log",
        "dpfpl_client.node.launch:_control_folder",
        "(folder / 'logs').mkdir(...)",
        "(folder / 'logs').mkdir(exist_ok=True, mode=0o755)",
        (f"{SEPARATION_TESTS}::test_A5_honest_code_reaches_the_agent_and_both_run_as_their_users",),
    ),
)
