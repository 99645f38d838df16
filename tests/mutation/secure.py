"""Ways to break secure aggregation: name, place, piece of code, what it becomes, tests."""

__all__ = ["SECURE"]

SUM_TESTS = "tests/common/secure/test_secure_sum.py"
NOISE_TESTS = "tests/common/secure/test_secure_noise.py"
ENROL_TESTS = "tests/client/test_enrol.py"
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
        "secure sum: pins are not looked at",
        "dpfpl_common.secure.site:SiteSum._everybody",
        "self._peers and site != self._site",
        "False",
        (
            f"{SUM_TESTS}::test_se7_pinned_peers_must_sign_their_keys",
            f"{FEDERATION_TESTS}::test_se7_an_operator_that_adds_invented_sites_is_refused_by_name",
        ),
    ),
    (
        "secure sum: a peer may sign with any key",
        "dpfpl_common.secure.site:SiteSum._check_peer",
        "fingerprint(signer) == pinned",
        "True",
        (
            f"{SUM_TESTS}::test_se7_pinned_peers_must_sign_their_keys",
            f"{FEDERATION_TESTS}::test_se7_an_operator_in_a_pinned_sites_place_is_refused_by_name",
        ),
    ),
    (
        "enrolment: nobody looks whether the aggregation key signed the file",
        "dpfpl_common.enrolment:Enrolment.__post_init__",
        "signer.verify(signature, _1)",
        "_1",
        (f"{ENROL_TESTS}::test_a_public_file_that_was_changed_on_its_way_is_refused",),
    ),
    (
        "enrolment: a kit's keys replace those that the site made",
        "dpfpl_client.site.kit:_refuse_other_keys",
        '(folder / "aggregation.key").exists()',
        "False",
        (f"{ENROL_TESTS}::test_no_kit_with_keys_replaces_the_sites_own_and_none_without_goes_elsewhere",),
    ),
    (
        "enrolment: the server puts keys of its own in an enrolled site's place",
        "dpfpl_server.sites.provision:_refuse_lost_enrolments",
        "sites[name].aggregation_key",
        "False",
        (f"{ENROL_TESTS}::test_the_server_puts_no_key_of_its_own_in_an_enrolled_sites_place",),
    ),
    (
        "enrolment: a withdrawn key comes back",
        "dpfpl_server.sites.admin:add_sites",
        '_short(enrolment.node_key) in {row["key"] for row in revoked_sites(server_folder)}',
        "False",
        (f"{ENROL_TESTS}::test_the_server_puts_no_key_of_its_own_in_an_enrolled_sites_place",),
    ),
    (
        "secure sum: auto takes secure where a site did not enrol",
        "dpfpl_common.experiment:with_secure",
        "sorted(set(experiment.sites) - set(enrolled))",
        "[]",
        (
            "tests/common/test_mechanism_choice.py::test_secure_is_taken_where_every_site_enrolled_and_a_sum_can_be_made",
        ),
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
        "secure sum: a part whose record is gone is drawn again",
        "dpfpl_client.agent.core:SiteAgent._add_up.compute",
        "charge.release_digest",
        "False",
        (f"{FEDERATION_TESTS}::test_a_sum_whose_record_is_gone_is_not_drawn_a_second_time",),
    ),
    (
        "secure sum: a vote is drawn again after an old ledger was accepted",
        "dpfpl_client.agent.core:SiteAgent._add_up.compute",
        "rows.sequence < self._ledger.accepted",
        "False",
        (f"{FEDERATION_TESTS}::test_a_state_folder_put_back_from_between_rows_and_vote_does_not_vote_twice",),
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
        "unpack_pool(pool)[0].rows",
        "self._noised_class_sums(randomness, 0.01)",
        (f"{FEDERATION_TESTS}::test_what_a_site_sends_in_training_depends_on_the_sum_alone",),
    ),
)
