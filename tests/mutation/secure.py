"""Ways to break secure aggregation: name, place, piece of code, what it becomes, tests."""

__all__ = ["SECURE"]

SUM_TESTS = "tests/common/secure/test_secure_sum.py"
NOISE_TESTS = "tests/common/secure/test_secure_noise.py"
FEDERATION_TESTS = "tests/bench/test_secure_federation.py"

SECURE = (
    (
        "secure sum: no mask of a site's own",
        "dpfpl_common.secure.site:SiteSum._masked",
        "values.view(np.uint64) + _1",
        "values.view(np.uint64) + np.uint64(0)",
        (f"{SUM_TESTS}::test_se1_the_sum_is_the_plain_one_bit_for_bit",),
    ),
    (
        "secure sum: masks that are no stream but one word",
        "dpfpl_common.secure.primitives:mask",
        'return np.frombuffer(_1, dtype="<u8")',
        'return np.full(size, np.frombuffer(stream[:8], dtype="<u8")[0])',
        (f"{SUM_TESTS}::test_se2_a_masked_message_is_uniform_and_independent_of_what_it_hides",),
    ),
    (
        "secure sum: the label does not name the attempt",
        "dpfpl_common.secure.terms:Terms.label",
        "self.attempt",
        "0",
        (f"{NOISE_TESTS}::test_a_site_makes_its_own_terms_of_the_experiment",),
    ),
    (
        "secure sum: both shares of one site are told",
        "dpfpl_common.secure.site:SiteSum._unmask",
        "set(survivors) & set(gone)",
        "False",
        (f"{SUM_TESTS}::test_se4_both_shares_of_one_site_are_refused",),
    ),
    (
        "secure sum: a second list of survivors is answered",
        "dpfpl_common.secure.site:SiteSum.answer",
        "done.requests[number] != _kept(step, request)",
        "False",
        (f"{SUM_TESTS}::test_se4_two_lists_of_survivors_are_refused",),
    ),
    (
        "secure sum: half of the holders suffice",
        "dpfpl_common.secure.graph:threshold_for",
        "return _1",
        "return holders // 2",
        (f"{SUM_TESTS}::test_se4_no_two_lists_of_survivors_reach_the_threshold",),
    ),
    (
        "secure sum: a site unmasks any number of survivors",
        "dpfpl_common.secure.site:_enough",
        "count < terms.least",
        "count < 1",
        (f"{SUM_TESTS}::test_se4_lists_about_other_sites_than_those_that_shared_are_refused",),
    ),
    (
        "secure sum: own keys replaced in the list",
        "dpfpl_common.secure.site:SiteSum._everybody",
        "own is None or own.to_bytes() != self.answered.replies[0]",
        "own is None",
        (f"{SUM_TESTS}::test_se5_unknown_peers_own_keys_replaced_and_equal_keys_are_refused",),
    ),
    (
        "secure sum: unknown peers",
        "dpfpl_common.secure.terms:names_of",
        "set(names) - set(terms.sites)",
        "set()",
        (f"{SUM_TESTS}::test_se5_unknown_peers_own_keys_replaced_and_equal_keys_are_refused",),
    ),
    (
        "secure sum: secrets stay after the end",
        "dpfpl_common.secure.site:SiteSum.answer",
        "step == STEPS[-1]",
        "False",
        (f"{SUM_TESTS}::test_se5_after_the_end_earlier_steps_are_refused_and_no_secret_is_left",),
    ),
    (
        "secure sum: peers' signatures are not looked at",
        "dpfpl_common.secure.site:SiteSum._everybody",
        "self._peers is not None",
        "False",
        (f"{SUM_TESTS}::test_pinned_peers_must_sign_their_keys",),
    ),
    (
        "secure sum: a wrong share gives a wrong sum",
        "dpfpl_common.secure.server:ServerSum.total",
        "p.commitment(secret, self.terms.label) != self._keys[site].commitment",
        "False",
        (f"{SUM_TESTS}::test_a_wrong_share_is_noticed_and_no_wrong_sum_is_given",),
    ),
    (
        "secure sum: the share counts a site that knows its own noise",
        "dpfpl_common.privacy_plan:noise_share",
        "honest_shares(experiment)",
        "(_0 * 2.25)",
        (f"{NOISE_TESTS}::test_se8_the_noise_of_the_sum_is_the_one_that_is_charged",),
    ),
    (
        "secure sum: another attempt after the sum was unmasked",
        "dpfpl_client.agent.sums:next_step",
        "kept.unmasked",
        "False",
        (f"{FEDERATION_TESTS}::test_se4_a_hostile_server_is_refused_and_the_refusal_is_in_the_audit",),
    ),
    (
        "secure sum: an earlier attempt goes on beside a later one",
        "dpfpl_client.agent.sums:next_step",
        "request.attempt < kept.attempt",
        "False",
        (f"{FEDERATION_TESTS}::test_a_broken_attempt_is_over_once_another_has_begun_and_the_integers_stay_the_same",),
    ),
    (
        "secure sum: a site trains on its own rows under secure trust",
        "dpfpl_client.learning.learner:PromptLearner.train_round",
        "self._unpacked(pool)[0].rows",
        "self._noised_class_sums(randomness, 0.01)",
        (f"{FEDERATION_TESTS}::test_what_a_site_sends_in_training_depends_on_the_sum_alone",),
    ),
)
