"""Ways to break what guards the operator's machine and the life of a federation: see mechanism.py for the fields."""

__all__ = ["DOORS"]

KEEPER = "tests/common/test_keeper.py::test_"
KIT_POLICY = "tests/client/test_kit_policy.py::test_DR6_"
LOGS = "tests/common/test_log_rotation.py::test_DR9_"
MEMORY = "tests/client/serving/test_serve_memory.py::test_DR10_ten_large_images_at_once[RGBA-PNG]"
TEXT = "tests/common/test_text.py::test_DR11_"
STRATEGY = "tests/server/test_strategy.py::test_DR12_"
WITHDRAWN = "tests/client/test_withdrawn.py::test_DR12_"

DOORS = (
    (
        "DR2: what crashed a fifth time is left dead",
        "dpfpl_common.ops.keeper:Keeper.look",
        "self._restarts == self._most",
        "self._restarts == 5",
        (KEEPER + "DR2_without_a_limit_it_is_started_for_ever",),
    ),
    (
        "DR6: a kit's looser rules hold without being accepted",
        "dpfpl_client.agent.policy_file:PolicyFile.begin_with",
        "stricter(template, policy)",
        "policy",
        (KIT_POLICY + "looser_rules_of_a_kit_are_listed_and_do_not_hold",),
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
        "dpfpl_client.use.serving.app:_OneAtATime.__call__",
        "self._lock",
        "asyncio.Lock()",
        (MEMORY,),
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
)
