"""Ways to break what the server checks and keeps: name, file, text that occurs exactly once, what it becomes, tests."""

__all__ = ["SERVER"]

PACKAGE = "server/src/dpfpl_server/"
COMMON = "common/src/dpfpl_common/"
AGENT = "client/src/dpfpl_client/agent/"
STRATEGY_TESTS = ("tests/server/test_strategy.py",)
FOLDER_TESTS = ("tests/server/test_run_folder.py",)
SUPERVISE_TESTS = ("tests/server/test_supervise.py",)
ROBUST_TESTS = ("tests/server/test_robust.py",)
SITES_TESTS = ("tests/server/test_sites_admin.py",)
EXPERIMENT_TESTS = ("tests/common/test_experiment.py",)
UPGRADE_TESTS = ("tests/client/test_upgrade.py",)

# An update's shape is checked twice, when it is read and against its request: no single break lets another one in.
SERVER = (
    (
        "server: an update that is not finite is added",
        COMMON + "payload.py",
        "    if not np.all(np.isfinite(array)):\n",
        "    if False:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: an update of any norm is added",
        PACKAGE + "replies.py",
        " > self._norm_cap:\n",
        " > 1e30:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: the norm's cap does not follow the operator's setting",
        PACKAGE + "aggregation.py",
        "    return privacy.clipping_norm * experiment.aggregation.largest_site / privacy.sample_rate + noise",
        "    return privacy.clipping_norm * 100.0 / privacy.sample_rate + noise",
        STRATEGY_TESTS,
    ),
    (
        "server: a site may answer in another's name",
        PACKAGE + "replies.py",
        "        if reply.site != site:\n",
        "        if False:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: an answer to another round counts",
        COMMON + "fields.py",
        "    if type(reply.round) is not int or reply.round != request.round:\n",
        "    if False:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: further records and keys pass",
        COMMON + "record_names.py",
        "        if key not in keys:\n",
        "        if False:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: another version of the protocol is taken",
        COMMON + "fields.py",
        "    if type(version) is not int or version != PROTOCOL_VERSION:\n",
        "    if False:\n",
        UPGRADE_TESTS,
    ),
    (
        "server: a refused reply counts towards the quorum",
        PACKAGE + "aggregation.py",
        "    if updates.count < needed:\n",
        "    if updates.count == 0:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: the quorum leaves the tolerated drop-outs out",
        COMMON + "experiment.py",
        "        return self.rounds.min_sites or len(self.sites) - self.privacy.tolerated_dropouts\n",
        "        return self.rounds.min_sites or len(self.sites) - 1\n",
        (*STRATEGY_TESTS, *EXPERIMENT_TESTS, "tests/server/test_aggregation.py"),
    ),
    (
        "server: every provisioned site is asked, on the list or not",
        PACKAGE + "strategy.py",
        "        self._nodes = {site: nodes[site] for site in experiment.sites}\n",
        "        self._nodes = dict(nodes)\n",
        STRATEGY_TESTS,
    ),
    (
        "server: a site that is not on the list takes part",
        AGENT + "core.py",
        "        if self._name not in experiment.sites:\n",
        "        if False:\n",
        ("tests/client/agent/test_core.py", "tests/attacks/test_adversarial_operator.py"),
    ),
    (
        "server: a late reply is added to the next round",
        PACKAGE + "exchange.py",
        '            site = waiting.pop(message_id, "")\n',
        '            site = waiting.pop(message_id, "") or missed.pop(message_id, "")\n',
        STRATEGY_TESTS,
    ),
    (
        "server: a round is asked for again although only refusals came",
        PACKAGE + "strategy.py",
        "                if attempt == attempts or replies.hopeless:\n",
        "                if attempt == attempts:\n",
        STRATEGY_TESTS,
    ),
    (
        "server: a round with missing sites starts at once",
        PACKAGE + "strategy.py",
        "            if not missing or (connected >= self.experiment.min_sites and number > 1):\n",
        "            if True:\n",
        STRATEGY_TESTS,
    ),
    (
        "checkpoint: a round is not kept",
        PACKAGE + "strategy.py",
        "        self._on_checkpoint(self.checkpoint)\n",
        "",
        STRATEGY_TESTS,
    ),
    (
        "checkpoint: a round is called done before it is kept",
        PACKAGE + "strategy.py",
        '        self._on_checkpoint(self.checkpoint)\n        self._on_status({"phase": "ROUND_DONE", **entry})\n',
        '        self._on_status({"phase": "ROUND_DONE", **entry})\n        self._on_checkpoint(self.checkpoint)\n',
        STRATEGY_TESTS,
    ),
    (
        "checkpoint: what is kept is not synced to the disk",
        PACKAGE + "run_store.py",
        "        with self._writing() as database:\n            ((known,),)",
        "        with self._writing(durable=False) as database:\n            ((known,),)",
        FOLDER_TESTS,
    ),
    (
        "checkpoint: the optimizer starts anew after a resume",
        PACKAGE + "run_store.py",
        "                optimizer=OptimizerState(first, second, steps),\n",
        "                optimizer=OptimizerState.zeros(shape),\n",
        FOLDER_TESTS,
    ),
    (
        "checkpoint: another configuration is resumed",
        PACKAGE + "run_store.py",
        "        if configuration != experiment.digest():\n",
        "        if False:\n",
        FOLDER_TESTS,
    ),
    (
        "resume: a run that decided to end is tried again and again",
        PACKAGE + "supervise.py",
        '        if outcome != "crashed" or restarts == limits.restarts:\n',
        '        if outcome == "stopped" or restarts == limits.restarts:\n',
        SUPERVISE_TESTS,
    ),
    (
        "resume: a run that was cut off is given up",
        PACKAGE + "supervise.py",
        '        if outcome != "crashed" or restarts == limits.restarts:\n',
        "        if True:\n",
        SUPERVISE_TESTS,
    ),
    (
        "resume: a second Flower run is started beside one that lives",
        PACKAGE + "supervise.py",
        "            if folder.server_life().alive:\n                return attempt\n",
        "            if False:\n                return attempt\n",
        SUPERVISE_TESTS,
    ),
    (
        "robust: the trimmed mean trims nothing",
        PACKAGE + "robust.py",
        "    return np.asarray(ordered[trim : len(updates) - trim].mean(axis=0))",
        "    return np.asarray(ordered.mean(axis=0))",
        ROBUST_TESTS,
    ),
    (
        "robust: Krum counts every distance, the hostile ones too",
        PACKAGE + "robust.py",
        "    closest = len(updates) - hostile - 2\n",
        "    closest = len(updates) - 1\n",
        ROBUST_TESTS,
    ),
    (
        "robust: Krum chooses among too few",
        PACKAGE + "robust.py",
        "    _enough(updates, 2 * hostile + 3)\n",
        "    _enough(updates, 3)\n",
        ROBUST_TESTS,
    ),
    (
        "sites: a revoked site stays registered",
        PACKAGE + "superlink.py",
        "        for node in by_key.values():\n            control.unregister(node.node_id)\n",
        "",
        SITES_TESTS,
    ),
)
