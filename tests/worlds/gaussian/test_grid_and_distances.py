import math

import pytest
import torch

from surveylib.worlds.gaussian.distances import kl_of_samples, kl_on_grid, mmd, mmd_test, sliced_wasserstein
from surveylib.worlds.gaussian.grid import Grid, GridDensity
from surveylib.worlds.gaussian.mixture import GaussianMixture, ring, two_peaks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(mean, std):
    return GaussianMixture([[mean]], [std])


@pytest.mark.parametrize("mixture, cells", [(two_peaks(), 1000), (ring(), 200)], ids=["1d", "2d"])
def test_grid_density_has_the_moments_and_integrates_to_one(mixture, cells):
    density = GridDensity.of(mixture.log_prob, Grid(-4, 4, cells, mixture.dim))
    assert density.log_normaliser == pytest.approx(0.0, abs=1e-4)
    assert float(density.density.sum()) * density.grid.width**mixture.dim == pytest.approx(1.0)
    torch.testing.assert_close(density.mean, mixture.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(density.covariance, mixture.covariance, rtol=1e-3, atol=1e-3)
    x = density.sample(40000, seeded()).double()
    torch.testing.assert_close(x.mean(0), mixture.mean, rtol=0, atol=0.03)
    second = density.expectation(lambda x: x[:, 0] ** 2)
    assert float(second) == pytest.approx(float(mixture.covariance[0, 0] + mixture.mean[0] ** 2), rel=1e-3)


def test_cells_and_points_agree():
    for dim in (1, 2):
        grid = Grid(-1, 1, 7, dim)
        assert torch.equal(grid.cell_of(grid.points), torch.arange(7**dim))
    assert Grid(-1, 1, 7, 1).cell_of(torch.tensor([[-9.0], [9.0]])).tolist() == [0, 6]


def test_kl_on_a_grid_is_the_closed_form():
    grid = Grid(-8, 8, 4000, 1)
    p, q = (GridDensity.of(normal(*args).log_prob, grid) for args in ((0.5, 0.8), (-0.3, 1.2)))
    exact = math.log(1.2 / 0.8) + (0.8**2 + 0.8**2) / (2 * 1.2**2) - 0.5
    assert kl_on_grid(p, q) == pytest.approx(exact, rel=1e-4)
    assert kl_on_grid(p, p) == 0
    with pytest.raises(ValueError, match="different grids"):
        kl_on_grid(p, GridDensity.of(normal(0.0, 1.0).log_prob, Grid(-8, 8, 100, 1)))


def test_kl_of_samples_is_near_the_true_kl_and_its_bias():
    grid = Grid(-4, 4, 40, 1)
    q = GridDensity.of(two_peaks().log_prob, grid)
    n = 20000
    assert kl_of_samples(two_peaks().sample(n, seeded()), q) == pytest.approx(39 / (2 * n), abs=2e-3)
    p = GridDensity.of(normal(-1.0, 0.4).log_prob, grid)
    assert kl_of_samples(p.sample(n, seeded()), q) == pytest.approx(kl_on_grid(p, q), rel=0.03)


def test_wasserstein_in_one_dimension_is_the_closed_form():
    x, y = normal(0.0, 1.0).sample(20000, seeded(1)), normal(0.7, 0.5).sample(10000, seeded(2))
    assert sliced_wasserstein(x, y) == pytest.approx(math.sqrt(0.7**2 + 0.5**2), rel=0.02)
    assert sliced_wasserstein(x, x) == 0
    shifted = sliced_wasserstein(x, x + 0.3, p=1)
    assert shifted == pytest.approx(0.3, rel=1e-3)


@pytest.mark.truth
def test_wasserstein_of_three_and_two_points_by_hand():
    """Quantiles 0, 3, 6 on thirds and 0, 2 on halves: they differ by 0, 3, 1, 4 on pieces of 1/3, 1/6, 1/6, 1/3."""
    x, y = torch.tensor([[3.0], [0.0], [6.0]]), torch.tensor([[2.0], [0.0]])
    assert sliced_wasserstein(x, y, p=1) == pytest.approx(2.0, rel=1e-12)
    assert sliced_wasserstein(y, x, p=2) == pytest.approx(math.sqrt(7.0), rel=1e-12)


def test_wasserstein_of_equal_sizes_pairs_the_sorted_points():
    x, y = torch.randn(50, 1, generator=seeded(1)).double(), torch.randn(50, 1, generator=seeded(2)).double()
    paired = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert sliced_wasserstein(x, y) == pytest.approx(paired, rel=1e-12)
    assert sliced_wasserstein(x, y.repeat(3, 1)) == pytest.approx(paired, rel=1e-12)  # the same distribution


def test_sliced_wasserstein_of_a_shift_in_two_dimensions():
    x = ring().sample(200, seeded())
    moved = sliced_wasserstein(x, x + torch.tensor([0.6, 0.8]), projections=2000, generator=seeded())
    assert moved == pytest.approx(1 / math.sqrt(2), rel=0.03)  # |shift|² / d, and the root


def test_mmd_is_the_closed_form():
    """E k(x, y) of a Gaussian kernel of width h between normals: N(0; m1 - m2, s1² + s2² + h²) h sqrt(2 pi)."""
    h, first, second = 1.0, (0.0, 1.0), (1.0, 0.6)

    def kernel_mean(p, q):
        variance = p[1] ** 2 + q[1] ** 2 + h**2
        return h / math.sqrt(variance) * math.exp(-((p[0] - q[0]) ** 2) / (2 * variance))

    exact = kernel_mean(first, first) + kernel_mean(second, second) - 2 * kernel_mean(first, second)
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    x, y = (torch.distributions.Normal(*p).icdf(levels)[:, None] for p in (first, second))  # without sampling noise
    assert mmd(x, y, bandwidth=h) == pytest.approx(exact, abs=2e-3)


def test_mmd_leaves_out_pairs_of_a_point_with_itself():
    x, y, h = torch.randn(4, 2, generator=seeded(1)).double(), torch.randn(3, 2, generator=seeded(2)).double(), 0.8

    def mean(p, q, same):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(q)) if not (same and i == j)]
        return sum(math.exp(-float((p[i] - q[j]).square().sum()) / (2 * h**2)) for i, j in pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert mmd(x, y, bandwidth=h) == pytest.approx(expected, rel=1e-9)


def test_mmd_interval_tells_equal_from_different():
    x, y = ring().sample(300, seeded(1)), ring().sample(250, seeded(2))
    same = mmd_test(x, y, generator=seeded())
    assert same.low <= same.value <= same.high and same.p_value > 0.05
    different = mmd_test(x, ring().restrict("east").sample(250, seeded(2)), generator=seeded())
    assert different.value > different.high and different.p_value < 0.01


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        Grid(-1, 1, 10, 3)
    with pytest.raises(ValueError, match="low < high"):
        Grid(1, -1, 10, 1)
    with pytest.raises(ValueError, match="3 values for 10 cells"):
        GridDensity(Grid(-1, 1, 10, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="same d"):
        mmd(torch.zeros(5, 1), torch.zeros(5, 2))
