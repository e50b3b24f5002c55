"""The weight average against its closed form."""

import pytest
import torch
from torch import nn

from surveylib.runs.ema import EMA


def test_average_follows_the_recursion():
    net = nn.Linear(1, 1, bias=False)
    values = [0.3, -1.0, 2.0, 0.5]
    nn.init.constant_(net.weight, 1.0)
    ema, expected = EMA(net, decay=0.3), 1.0
    for n, value in enumerate(values, start=1):
        nn.init.constant_(net.weight, value)
        ema.update()
        d = min(0.3, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
    assert ema.average["weight"].item() == pytest.approx(expected, abs=1e-6)
    with ema.applied():
        assert net.weight.item() == pytest.approx(expected, abs=1e-6)
    assert net.weight.item() == values[-1]


def test_state_round_trip_and_bad_decay():
    net = nn.Linear(2, 2)
    ema, other = EMA(net, 0.9), EMA(nn.Linear(2, 2), 0.9)
    ema.update()
    other.load_state_dict(ema.state_dict())
    assert other.updates == 1 and all(torch.equal(other.average[k], ema.average[k]) for k in ema.average)
    with pytest.raises(ValueError, match=r"decay=1.0 must be in \[0, 1\)"):
        EMA(net, 1.0)
