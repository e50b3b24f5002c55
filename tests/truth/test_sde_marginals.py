"""Do the stochastic samplers sample the model's distribution? Exact scores of a Gaussian, no Monte Carlo.

On N(m, v) every step is affine in x, x' = A x + b + std z, so that mean and variance are carried through exactly.
The ratio printed is (variance of the samples) / v; 1 is right. Uniform grid, no shift, v = 1:

============================  =======  =======  =======  =======  ==========================================
sampler                       20       80       320      1280     order in the number of steps
============================  =======  =======  =======  =======  ==========================================
ODE (DDIM eta = 0)            0.879    0.968    0.992    0.998    1
Dance-SDE eta = 0.3           0.887    0.970    0.993    0.998    1
Dance-SDE eta = 1             0.942    0.985    0.996    0.999    1
Flow-SDE a = 1.2              1.002    1.001    1.0004   1.0001   1
Flow-SDE a = 0.7              0.978    1.007    1.008    1.005    a² = 0.49: see below
CPS eta = 0.7                 0.644    0.700    0.718    0.724    0: the limit is cos²(eta pi/4) = 0.727
============================  =======  =======  =======  =======  ==========================================

Flow-SDE. Near sigma = 1, g² = a² sigma/(1 - sigma) is so large that the first steps add noise of std about a however
short they are: an error of order 1, which the rest of the path forgets like h^(a²), h the step size. Hence order
min(1, a²): with the usual a = 0.7 the last per mille come slowly, from above.

CPS. At small sigma a step multiplies x by 1 - (1 - cos(eta pi/2)) sigma²/v and adds variance (sigma sin(eta pi/2))²;
both stay whatever the number of steps, and balance at v (1 + cos(eta pi/2))/2 = v cos²(eta pi/4).

The order of Flow-SDE and the limit of CPS are derived and measured here, not taken from the papers.
"""

import math
from itertools import pairwise

import pytest
import torch

from surveylib.diffusion.dynamics import CPS, DDIM, DanceSDE, FlowSDE
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.worlds.gaussian.mixture import GaussianMixture
from surveylib.worlds.gaussian.models import ExactModel

pytestmark = pytest.mark.truth
FLOW = FlowSchedule(spacing="uniform")
MEAN = 0.5


def moments(dynamics, steps, variance, schedule=FLOW):
    """Exact (mean error, variance ratio) of the samples of N(MEAN, variance)."""
    model = ExactModel(GaussianMixture([[MEAN]], [math.sqrt(variance)]), schedule)
    times = schedule.grid(steps)
    x = torch.cat([torch.zeros(steps, 1), torch.ones(steps, 1)]).double()
    prediction = model.predict(x, times[:-1].repeat(2), model.encode(["any"] * 2 * steps))
    transition = dynamics.transition(prediction, times[1:].repeat(2))
    offset = transition.mean[:steps, 0]
    slope = transition.mean[steps:, 0] - offset
    noise = transition.std.expand(2 * steps, 1)[:steps, 0]
    mean, spread = 0.0, 1.0
    for a, b, std in zip(slope.tolist(), offset.tolist(), noise.tolist()):
        mean, spread = a * mean + b, a * a * spread + std * std
    return mean - MEAN, spread / variance


def errors(dynamics, counts, variance, schedule=FLOW):
    return [abs(moments(dynamics, steps, variance, schedule)[1] - 1) for steps in counts]


@pytest.mark.parametrize("variance", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("dynamics", [DDIM(0.0), DanceSDE(0.3), DanceSDE(1.0)], ids=repr)
def test_ode_and_dance_sde_converge_to_the_data_with_order_one(dynamics, variance):
    error = errors(dynamics, (100, 400, 1600), variance)
    for coarse, fine in pairwise(error):
        assert math.log(coarse / fine, 4) == pytest.approx(1.0, abs=0.08)
    assert error[-1] < 0.01


@pytest.mark.parametrize("a, order, tolerance", [(0.7, 0.49, 0.06), (1.2, 1.0, 0.06)])
def test_flow_sde_converges_with_order_a_squared_up_to_one(a, order, tolerance):
    error = errors(FlowSDE(a), (1280, 5120, 20480), 1.0)
    assert error[0] > error[1] > error[2]
    assert math.log(error[1] / error[2], 4) == pytest.approx(order, abs=tolerance)
    assert errors(FlowSDE(a), (40, 160, 640), 1.0)[-1] < 0.01  # and is close long before


@pytest.mark.parametrize("variance", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_cps_keeps_losing_variance_on_spread_data(eta, variance):
    limit = math.cos(eta * math.pi / 4) ** 2
    ratio = moments(CPS(eta), 10000, variance)[1]
    assert ratio == pytest.approx(limit, abs=0.005)
    assert moments(CPS(eta), 20, variance)[1] < ratio


def test_cps_numbers_of_the_trial():
    assert moments(CPS(0.7), 20, 1.0)[1] == pytest.approx(0.644, abs=0.001)
    assert moments(CPS(0.7), 1000, 1.0)[1] == pytest.approx(0.723, abs=0.001)


def test_cps_loses_nothing_on_a_point():
    """With a point mass eps is independent of x0, and the coefficients are all that matters."""
    schedule = FLOW
    model = ExactModel(GaussianMixture([[MEAN]], [1e-6]), schedule)
    times = schedule.grid(20)
    x = torch.tensor([[MEAN * float(1 - times[5]) + float(times[5])]], dtype=torch.float64)  # x0 + one unit of noise
    transition = CPS(0.7).transition(model.predict(x, times[5], model.encode(["any"])), times[6])
    centre = MEAN * float(1 - times[6])
    kept = float(transition.mean - centre) ** 2 + float(transition.std) ** 2
    assert kept == pytest.approx(float(times[6]) ** 2, rel=1e-6)


@pytest.mark.parametrize("dynamics", [DDIM(0.0), DDIM(1.0), DanceSDE(0.3), DanceSDE(1.0)], ids=repr)
def test_on_a_vp_schedule_too(dynamics):
    coarse, fine = errors(dynamics, (100, 500), 0.5, VPSchedule.linear())
    assert fine < coarse / 3 and fine < 0.03


@pytest.mark.parametrize("dynamics", [DDIM(0.0), DanceSDE(1.0), FlowSDE(0.7), CPS(0.7)], ids=repr)
def test_the_mean_is_right_for_all(dynamics):
    assert moments(dynamics, 50, 0.5)[0] == pytest.approx(0.0, abs=1e-6)
