"""Choice models: known answers, other libraries, derivatives, intervals."""

import functools
import math

import choix
import evalica
import numpy as np
import pytest
import torch

from surveylib.feedback.choice import (
    MODELS,
    AnnotatorAbility,
    BradleyTerry,
    Davidson,
    PlackettLuce,
    PositionBias,
    RaoKupper,
    Thurstone,
    ability,
    bradley_terry,
    choice_model,
    comparisons,
    plackett_luce,
    position,
    rankings,
    thurstone,
    ties,
)
from surveylib.feedback.choice.__main__ import main
from surveylib.feedback.choice.fit import Problem, derivatives

TRUTH = torch.tensor([1.2, 0.5, 0.1, -0.6, -1.2], dtype=torch.float64)
ABILITY = torch.tensor([2.0, 1.2, 0.8, 0.0], dtype=torch.float64)


def design(count, seed=0, items=5):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(items, (count,), generator=generator)
    return first, (first + torch.randint(1, items, (count,), generator=generator)) % items, generator


def simulate(model, count=400, seed=0):
    """Data of a model with TRUTH, and its true extras."""
    first, second, g = design(count, seed)
    difference = TRUTH[first] - TRUTH[second]
    if model is AnnotatorAbility:
        annotator = torch.randint(4, (count,), generator=g)
        y = ability.sample(TRUTH, ABILITY, annotator, first, second, g)
        return comparisons(first, second, y, annotator=annotator), ABILITY.tolist()
    if model is PlackettLuce:
        shown = torch.stack([torch.randperm(5, generator=g)[:4] for _ in range(count // 2)])
        return rankings(plackett_luce.sample(TRUTH, shown, g), items=range(5)), []
    y, extras = {
        BradleyTerry: lambda: (bradley_terry.sample(TRUTH, first, second, g), []),
        Thurstone: lambda: (thurstone.sample(TRUTH, first, second, g), []),
        PositionBias: lambda: (position.sample(TRUTH, 0.5, first, second, g), [0.5]),
        RaoKupper: lambda: (ties.sample(ties.rao_kupper(difference, 0.4), g), [0.4]),
        Davidson: lambda: (ties.sample(ties.davidson(difference, 0.7), g), [0.7]),
    }[model]()
    return comparisons(first, second, y), extras


@pytest.mark.truth
@pytest.mark.parametrize("model", MODELS.values())
def test_intervals_cover_the_truth(model):
    """Strengths and extras of 30 data sets: 95% intervals hold between 88% and 99% of all."""
    inside = total = 0
    for seed in range(30):
        data, extras = simulate(model, seed=seed)
        fit = model().fit(data)
        truth = np.r_[TRUTH.numpy(), extras]
        low, high = (np.r_[getattr(fit, side), [getattr(e, side) for e in fit.extras.values()]]
                     for side in ("low", "high"))
        inside, total = inside + int(((low <= truth) & (truth <= high)).sum()), total + len(truth)
        assert abs(fit.strengths.sum()) < 1e-9
    assert 0.88 < inside / total < 0.99


@pytest.mark.truth
@pytest.mark.parametrize("model", MODELS.values())
def test_derivatives_are_those_of_finite_differences(model):
    data, _ = simulate(model, count=60)
    problem = Problem(model(), data, prior=1.5)
    start = problem.start()
    z = start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    steps = 1e-5 * torch.eye(len(z), dtype=torch.float64)
    def objective(z):
        return problem.objective(z, data.weight)
    _, gradient, hessian = derivatives(objective, z)
    numeric = torch.stack([(objective(z + h) - objective(z - h)) / 2e-5 for h in steps])
    torch.testing.assert_close(gradient, numeric, atol=1e-8, rtol=1e-6)
    numeric = torch.stack([(derivatives(objective, z + h)[1] - derivatives(objective, z - h)[1]) / 2e-5 for h in steps])
    torch.testing.assert_close(hessian, numeric, atol=1e-7, rtol=1e-5)
    numeric = torch.stack([(problem.log_likelihood(z + h) - problem.log_likelihood(z - h)) / 2e-5 for h in steps], 1)
    torch.testing.assert_close(problem.scores(z), numeric, atol=1e-7, rtol=1e-5)


@pytest.mark.truth
def test_bradley_terry_is_choix_and_evalica():
    data, _ = simulate(BradleyTerry)
    fit = BradleyTerry().fit(data)
    won = data.preference > 0
    pairs = torch.stack([torch.where(won, data.first, data.second), torch.where(won, data.second, data.first)], 1)
    pairs = pairs.tolist()
    scores = evalica.bradley_terry(*map(list, zip(*pairs)), [evalica.Winner.X] * len(pairs), tolerance=1e-12,
                                   limit=10_000).scores
    others = [choix.ilsr_pairwise(5, pairs), choix.opt_pairwise(5, pairs, alpha=0, tol=1e-8, method="BFGS"),
              np.log(scores.loc[list(range(5))].to_numpy())]
    for other in others:
        np.testing.assert_allclose(fit.strengths, other - other.mean(), atol=1e-6)
    ridge = BradleyTerry().fit(data, prior=0.5).strengths  # choix: alpha |θ|², so alpha = 1 / (2 prior²)
    np.testing.assert_allclose(ridge, choix.opt_pairwise(5, pairs, alpha=2.0, tol=1e-10), atol=1e-6)


@pytest.mark.truth
def test_plackett_luce_is_choix_for_full_rankings_and_for_the_best_of_a_set():
    data, _ = simulate(PlackettLuce)
    orders = [tuple(i for group in ranking for i in group) for ranking in data.groups]
    np.testing.assert_allclose(PlackettLuce().fit(data).strengths, choix.ilsr_rankings(5, orders), atol=1e-6)
    best = plackett_luce.partition(torch.tensor(orders), (1, 3), data.items)
    expected = choix.opt_top1(5, [(o[0], o[1:]) for o in orders], alpha=0, tol=1e-10)
    np.testing.assert_allclose(PlackettLuce().fit(best).strengths, expected - expected.mean(), atol=1e-6)


@pytest.mark.truth
def test_plackett_luce_of_two_is_bradley_terry():
    data, _ = simulate(BradleyTerry)
    names = [(a, b) if y else (b, a) for a, b, y in zip(data.first.tolist(), data.second.tolist(), data.preference)]
    both = PlackettLuce().fit(rankings(names)), BradleyTerry().fit(data)
    for attribute in ("strengths", "low", "high", "log_likelihood"):
        np.testing.assert_allclose(*(getattr(fit, attribute) for fit in both), atol=1e-9)


@pytest.mark.truth
@pytest.mark.parametrize("ranking", [[[0, 1], [2, 3, 4]], [[0, 1, 2], 3, [4]], [0, [1, 2], [3, 4]], [[2, 0, 1, 4], 3]])
def test_partitioned_ranking_is_the_sum_over_its_full_rankings(ranking):
    from itertools import permutations, product

    groups = [group if isinstance(group, list) else [group] for group in ranking]
    orders = [sum(parts, ()) for parts in product(*map(permutations, groups))]
    each = plackett_luce.log_likelihood(TRUTH, rankings(orders, items=range(5)))
    value = plackett_luce.log_likelihood(TRUTH, rankings([ranking], items=range(5)))
    torch.testing.assert_close(value[0], each.logsumexp(0))
    everything = rankings(permutations(range(5)), items=range(5))
    assert float(plackett_luce.log_likelihood(TRUTH, everything).exp().sum()) == pytest.approx(1)


@pytest.mark.truth
def test_ties_models_have_probabilities_and_become_bradley_terry():
    difference = torch.linspace(-4, 4, 17, dtype=torch.float64)
    for model in (ties.rao_kupper, ties.davidson):
        torch.testing.assert_close(model(difference, 0.6).exp().sum(1), torch.ones(17, dtype=torch.float64))
        without = model(difference, 0.0)
        torch.testing.assert_close(without[:, 0].exp(), torch.sigmoid(difference))
        assert bool((without[:, 1] == -math.inf).all())
    p = ties.davidson(difference, 0.6).exp()
    torch.testing.assert_close(p[:, 0] / (p[:, 0] + p[:, 2]), torch.sigmoid(difference))
    pi, theta = difference.exp(), math.exp(0.6)  # Rao-Kupper's own form, π_b = 1
    tie = (theta**2 - 1) * pi / ((pi + theta) * (theta * pi + 1))
    torch.testing.assert_close(ties.rao_kupper(difference, 0.6)[:, 1].exp(), tie)
    data, _ = simulate(BradleyTerry)  # one tie in 401: nearly the strengths of Bradley-Terry
    data = comparisons([*data.first.tolist(), 0], [*data.second.tolist(), 1], [*data.preference.tolist(), 0.5])
    for model in (RaoKupper, Davidson):
        np.testing.assert_allclose(model().fit(data).strengths, BradleyTerry().fit(data).strengths, atol=0.01)


@pytest.mark.truth
def test_thurstone_is_the_normal_distribution():
    values = thurstone.log_likelihood(torch.tensor([0.7, 0.0]), torch.tensor([0, 1]), torch.tensor([1, 0]),
                                      torch.tensor([1.0, 1.0])).exp()
    phi = 0.5 * (1 + math.erf(0.7 / math.sqrt(2)))
    torch.testing.assert_close(values, torch.tensor([phi, 1 - phi]))
    fit = Thurstone().fit(comparisons(["a"] * 4, ["b"] * 4, [1, 1, 1, 0]))
    assert fit.difference("a", "b").value == pytest.approx(0.6744897501960817)  # the 75% quantile


@pytest.mark.truth
def test_position_and_ability_without_effect_are_bradley_terry():
    data, _ = simulate(AnnotatorAbility)
    columns = data.first, data.second, data.preference
    plain = bradley_terry.log_likelihood(TRUTH, *columns)
    torch.testing.assert_close(position.log_likelihood(TRUTH, 0.0, *columns), plain)
    same = ability.log_likelihood(TRUTH, torch.ones(4), data.annotator_number, *columns)
    torch.testing.assert_close(same, plain)
    fit = AnnotatorAbility().fit(data)
    assert np.mean([e.value for e in fit.extras.values()]) == pytest.approx(1)


@pytest.mark.truth
@pytest.mark.parametrize("sampler, probability", [
    (lambda f, s, g: bradley_terry.sample(TRUTH, f, s, g), 1 / (1 + math.exp(-0.7))),
    (lambda f, s, g: thurstone.sample(TRUTH, f, s, g), 0.5 * (1 + math.erf(0.7 / math.sqrt(2)))),
    (lambda f, s, g: position.sample(TRUTH, 0.3, f, s, g), 1 / (1 + math.exp(-1.0))),
    (lambda f, s, g: ability.sample(TRUTH, ABILITY, torch.zeros_like(f), f, s, g), 1 / (1 + math.exp(-1.4))),
    (lambda f, s, g: (plackett_luce.sample(TRUTH, torch.stack([f, s], 1), g)[:, 0] == f).double(),
     1 / (1 + math.exp(-0.7)))])
def test_samples_have_the_probability(sampler, probability):
    first, second = torch.zeros(20_000, dtype=torch.long), torch.ones(20_000, dtype=torch.long)
    drawn = sampler(first, second, torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(probability, abs=4 * 0.5 / math.sqrt(20_000))
    torch.testing.assert_close(drawn, sampler(first, second, torch.Generator().manual_seed(0)))


@pytest.mark.truth
def test_sandwich_is_the_inverse_hessian_under_the_model():
    data, _ = simulate(BradleyTerry, count=20_000)
    a, b = (BradleyTerry().fit(data, interval=interval) for interval in ("sandwich", "hessian"))
    np.testing.assert_allclose(a.covariance, b.covariance, atol=0.05 * b.covariance.max())


@pytest.mark.truth
@pytest.mark.parametrize("interval", ["sandwich", "bayesian bootstrap", "bootstrap"])
def test_copies_in_their_cluster_leave_the_interval_and_without_clusters_halve_it(interval):
    data, _ = simulate(BradleyTerry, count=200)
    copied = data.take(np.arange(800) % 200)
    options = {"interval": interval, "resamples": 30}
    once = BradleyTerry().fit(data, cluster=list(range(200)), **options)
    clustered = BradleyTerry().fit(copied, cluster=[m % 200 for m in range(800)], **options)
    np.testing.assert_allclose(clustered.standard_errors, once.standard_errors, rtol=1e-6)
    naive = BradleyTerry().fit(copied, **options)
    assert (naive.standard_errors / once.standard_errors).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.truth
def test_bootstraps_agree_with_the_sandwich():
    data, _ = simulate(Davidson, count=300)
    sandwich = Davidson().fit(data)
    for interval in ("bootstrap", "bayesian bootstrap"):
        fit = Davidson().fit(data, interval=interval, resamples=60)
        ratio = fit.standard_errors / sandwich.standard_errors
        assert ratio.mean() == pytest.approx(1, abs=0.15) and fit.failed_resamples == 0
        np.testing.assert_allclose(fit.low, sandwich.low, atol=1.5 * sandwich.standard_errors.max())
        assert fit.extras["nu"].standard_error == pytest.approx(sandwich.extras["nu"].standard_error, rel=0.25)


def test_weight_is_repetition_and_take_keeps_columns():
    data, _ = simulate(AnnotatorAbility, count=100)
    twice = data.take(np.r_[np.arange(100), np.arange(100)])
    doubled = comparisons(data.first, data.second, data.preference, weight=[2.0] * 100, annotator=data.annotator)
    for model in (BradleyTerry, AnnotatorAbility):
        a, b = model().fit(twice, interval="hessian"), model().fit(doubled, interval="hessian")
        np.testing.assert_allclose(a.strengths, b.strengths, atol=1e-7)
        np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-5, atol=1e-9)


def test_command_prints_truth_and_the_other_libraries_and_names_a_missing_one(capsys, monkeypatch):
    from surveylib.feedback.choice import simulation

    small = {name: functools.partial(getattr(simulation, name), count=120)
             for name in ("bradley_terry_table", "plackett_luce_table")}
    for name, make in small.items():
        monkeypatch.setattr(f"surveylib.feedback.choice.__main__.{name}", make)
    main(["--seed", "3"])
    shown = capsys.readouterr().out
    assert "ilsr_pairwise" in shown and "Largest difference of evalica.bradley_terry" in shown
    monkeypatch.setattr(simulation, "find_spec", lambda name: None if name == "choix" else object())
    main([])
    shown = capsys.readouterr().out
    assert "choix is not installed" in shown and "evalica is not installed" not in shown


@pytest.mark.truth
def test_tables_agree_with_the_other_libraries():
    from surveylib.feedback.choice import simulation

    for table in (simulation.bradley_terry_table(1), simulation.plackett_luce_table(1)):
        assert max(table.largest_difference().values()) < 1e-5 and table.covered() >= 6 and not table.missing


def test_unknown_model_lists_what_exists():
    assert isinstance(choice_model("davidson"), Davidson)
    with pytest.raises(ValueError, match="bradley_terry, rao_kupper"):
        choice_model("elo")
