"""A federation of real agents is measured as it grows."""

from research.speed import scale as module
from research.speed.scale import ScaleRequest, markdown, measure_scale


def test_R3_real_agents_sign_and_learn_and_their_number_is_what_costs(monkeypatch):
    checked = []
    real = module.DPFPLStrategy

    class Checked(real):
        def __init__(self, experiment, nodes, *, keys, **others):
            checked.append(set(keys) == set(experiment.sites) and all(keys.values()))
            super().__init__(experiment, nodes, keys=keys, **others)

    monkeypatch.setattr(module, "DPFPLStrategy", Checked)
    two, four = measure_scale(ScaleRequest(counts=(4, 2), rounds=2, images=8))
    assert checked == [True, True]
    assert (two["sites"], four["sites"]) == (2, 4)
    assert four["bytes_up"] == 2 * two["bytes_up"]
    assert 0 < two["server_s"] < two["round_s"]
    lines = markdown([two, four]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
