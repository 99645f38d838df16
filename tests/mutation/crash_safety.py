"""Ways to break crash-safety, wire and socket: name, file, text that is there exactly once, what it becomes, tests."""

__all__ = ["CRASH_SAFETY"]

AGENT = "client/src/dpfpl_client/agent/"
COMMON = "common/src/dpfpl_common/"
KILLS = "tests/faults/test_kill_points.py::test_"
BEFORE = (KILLS + "F2_F3_killed_after_the_reservation_it_stays_charged_and_old_noise_is_never_used",)
AFTER = (KILLS + "F4_F5_killed_after_the_record_the_very_bytes_are_served_and_charged_once",)
POWER_TESTS = ("tests/faults/test_power_loss.py",)
DISK_TESTS = ("tests/faults/test_storage_faults.py",)
FAULT_TESTS = ("tests/faults/test_site_faults.py",)
INPUT_TESTS = ("tests/client/agent/test_rpc_input.py",)
ATTACK_TESTS = ("tests/attacks/test_attack_rows.py",)

CRASH_SAFETY = (
    (
        "crash: reserved after the computation",
        AGENT + "core.py",
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n"
        "        record = self._compute(learner, request, digest, policy, started)\n",
        "        record = self._compute(learner, request, digest, policy, started)\n"
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n",
        BEFORE,
    ),
    (
        "crash: committed before the record is written",
        AGENT + "core.py",
        "        self._store.write(experiment.name, request.round, record)\n"
        "        self._ledger.commit(sequence, record.digest())\n",
        "        self._ledger.commit(sequence, record.digest())\n"
        "        self._store.write(experiment.name, request.round, record)\n",
        BEFORE,
    ),
    (
        "crash: a release found after a crash is not committed",
        AGENT + "core.py",
        "                if not charge.release_digest:\n"
        "                    self._ledger.commit(charge.sequence, record.digest())\n",
        "",
        AFTER,
    ),
    (
        "crash: an interrupted round is computed anew without a charge",
        AGENT + "core.py",
        "        sequence = self._ledger.reserve(experiment.name, request.round, digest, events)\n",
        "        before = self._ledger.find(experiment.name, request.round)\n"
        "        sequence = before.sequence if before else self._ledger.reserve(\n"
        "            experiment.name, request.round, digest, events\n"
        "        )\n",
        BEFORE,
    ),
    (
        "crash: a release is computed anew although it is stored",
        AGENT + "core.py",
        "            if record is not None and record.request_digest == digest:\n",
        "            if record is not None and record.request_digest == digest and charge.release_digest:\n",
        AFTER,
    ),
    (
        "crash: a record is written in place",
        COMMON + "durable.py",
        '    temporary = path.with_name(f".{path.name}.tmp")\n',
        "    temporary = path\n",
        BEFORE,
    ),
    (
        "power: a record's content is not synced",
        COMMON + "durable.py",
        "            os.fsync(descriptor)\n        finally:\n            os.close(descriptor)\n        temporary",
        "        finally:\n            os.close(descriptor)\n        temporary",
        POWER_TESTS,
    ),
    (
        "power: a record's name is not synced",
        COMMON + "durable.py",
        "        raise\n    fsync_folder(path.parent)\n",
        "        raise\n",
        POWER_TESTS,
    ),
    (
        "power: a new folder's name is not synced",
        COMMON + "durable.py",
        "        path.mkdir(mode=mode, exist_ok=True)\n        fsync_folder(path.parent)\n",
        "        path.mkdir(mode=mode, exist_ok=True)\n",
        POWER_TESTS,
    ),
    (
        "power: the ledger is written as Flower's databases are",
        AGENT + "ledger_file.py",
        '        self.execute("PRAGMA synchronous=FULL")',
        '        self.execute("PRAGMA synchronous=NORMAL")',
        POWER_TESTS,
    ),
    (
        "disk: the ledger goes on after a sync that failed",
        AGENT + "ledger_file.py",
        "            self._broken = True\n            if isinstance",
        "            if isinstance",
        DISK_TESTS,
    ),
    (
        "disk: the store goes on after a sync that failed",
        AGENT + "store.py",
        "            self._broken = True\n            raise",
        "            raise",
        DISK_TESTS,
    ),
    (
        "disk: a full disk is a broken one",
        COMMON + "durable.py",
        "    return error.errno in (errno.ENOSPC, errno.EDQUOT)",
        "    return False",
        DISK_TESTS,
    ),
    (
        "disk: what was begun stays on a full disk",
        COMMON + "durable.py",
        "        temporary.unlink(missing_ok=True)\n        raise",
        "        raise",
        DISK_TESTS,
    ),
    (
        "stop: a computing agent may take as long as it likes",
        AGENT + "service.py",
        "        idle = server.stop(grace_s)\n",
        "        idle = server.stop(600.0)\n",
        FAULT_TESTS,
    ),
    (
        "wire: values that are not finite pass",
        COMMON + "payload.py",
        "    if not np.all(np.isfinite(array)):\n",
        "    if False:\n",
        INPUT_TESTS,
    ),
    (
        "wire: another shape passes",
        COMMON + "fields.py",
        "    if tuple(declared) != shape:\n",
        "    if False:\n",
        INPUT_TESTS,
    ),
    (
        "wire: data of another length are read",
        COMMON + "fields.py",
        "    if len(data) != size:\n",
        "    if False:\n",
        INPUT_TESTS,
    ),
    (
        "wire: no cap on a message's size",
        AGENT + "service.py",
        '    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),\n',
        '    ("grpc.max_receive_message_length", -1),\n',
        INPUT_TESTS,
    ),
    (
        "wire: unknown fields pass",
        COMMON + "wire.py",
        "    if len(UnknownFieldSet(message)) > 0:\n",
        "    if False:\n",
        ("tests/common/test_wire.py",),
    ),
    (
        "wire: another version of the protocol is spoken with",
        COMMON + "fields.py",
        "    if type(version) is not int or version != PROTOCOL_VERSION:\n",
        "    if False:\n",
        INPUT_TESTS,
    ),
    (
        "wire: a round outside the experiment passes",
        COMMON + "payload.py",
        " or not low <= number <= high:\n",
        ":\n",
        INPUT_TESTS,
    ),
    (
        "wire: the text of an error inside leaves",
        AGENT + "service.py",
        "                reply = wire.encode_refusal(internal_refusal(incident))\n",
        "                import sys\n\n"
        '                refusal = agent_pb2.Refusal(code="INTERNAL", rule=f"{sys.exception()} incident {incident}")\n'
        "                reply = agent_pb2.Reply(protocol_version=1, refusal=refusal)\n",
        INPUT_TESTS,
    ),
    (
        "socket: any caller is let in",
        AGENT + "service.py",
        "        if self._credential.matches(details.invocation_metadata):\n",
        "        if True:\n",
        ATTACK_TESTS,
    ),
    (
        "socket: others may connect",
        AGENT + "socket_file.py",
        "        self._path.chmod(0o600 if self._group is None else 0o660)",
        "        self._path.chmod(0o666)",
        ATTACK_TESTS,
    ),
    (
        "socket: an address for everybody is taken",
        AGENT + "service.py",
        "private_host(self._wanted, self._allow_any)",
        "private_host(self._wanted, True)",
        ATTACK_TESTS,
    ),
    (
        "users: the agent's log can be read by the operator's code",
        "client/src/dpfpl_client/launch.py",
        '    (folder / "logs").mkdir(exist_ok=True, mode=0o700)\n',
        '    (folder / "logs").mkdir(exist_ok=True, mode=0o755)\n',
        ("tests/attacks/test_separation.py",),
    ),
)
