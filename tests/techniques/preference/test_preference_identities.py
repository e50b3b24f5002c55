"""Identities of the preference losses on a model that has moved, and what becomes of records on the way to them."""

import math
import re
from collections import Counter

import pytest
import torch

from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.zoo import load_model
from surveylib.feedback.pictures import RecordError, encode_picture
from surveylib.feedback.record import Record
from surveylib.techniques.contract import Batch, Draw, TechniqueError
from surveylib.techniques.preference import implicit
from surveylib.techniques.preference.data import RecordedPreferences, from_records, from_tensors, sampled, shares_beaten
from surveylib.techniques.preference.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from surveylib.techniques.preference.diffusion_kto import DiffusionKTO, DiffusionKTOConfig
from surveylib.techniques.preference.implicit import implicit_rewards, recorded_batch
from surveylib.techniques.preference.rankdpo import RankDPO, RankDPOConfig, dcg_weights

M = 6
DPO = DiffusionDPO(DiffusionDPOConfig(beta=400.0, empty_prompts=0.0))
KTO = DiffusionKTO(DiffusionKTOConfig(beta=400.0, empty_prompts=0.0))


def policy(moved: float = 0.05, lora: bool = True):
    """A model whose reference is the model as it was: by LoRA, or by a copy of all weights."""
    model = load_model("tiny-sd")
    if lora:
        add_lora(model, 2)
    else:
        model.network.requires_grad_(True)
        model.snapshot("reference")
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.trainable_parameters():
            p.add_((moved if lora else 0.1 * moved) * torch.randn(p.shape, generator=noise))
    return model


@pytest.fixture(scope="module")
def model():
    return policy()


def items(model, k=2, label=None, seed=3):
    """M rows of k latents."""
    x = torch.randn(M, k, *model.latent_shape, generator=torch.Generator().manual_seed(7))
    label = torch.zeros(M, dtype=torch.long) if label is None else label
    return Batch(model.encode([f"prompt {i}" for i in range(M)]), {"x": x, "label": label}).all_items(seed)


def changed(found, **values):
    return type(found)(found.condition, {**found.values, **values}, found.keys)


def gradient(model, loss):
    parts = torch.autograd.grad(loss, model.trainable_parameters(), allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for g, p in zip(parts, model.trainable_parameters())])


def alike(found, wanted):
    """The same gradient, and one that is not zero."""
    return wanted.norm() > 0 and (found - wanted).norm() < 1e-3 * wanted.norm()


def watched(model, found, **options):
    """Implicit rewards, what denoising errors were asked for (x0, t, noise), and the errors: policy first."""
    asked, errors, original = [], [], implicit.denoising_error

    def spy(model, x0, condition, t, noise, **more):
        asked.append((x0, t, noise))
        errors.append(original(model, x0, condition, t, noise, **more))
        return errors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implicit, "denoising_error", spy)
        return implicit_rewards(model, found, **options), asked, errors


def test_kto_and_rankdpo_start_at_their_known_values():
    """Policy and reference are the same: sigmoid and log sigmoid of 0, whatever the pictures."""
    model, gains = policy(0.0), torch.tensor([[1.0, 0.5, 0.0]]).repeat(M, 1)
    found = items(model, 1, torch.tensor([1, 0] * (M // 2)))
    kto = DiffusionKTO(DiffusionKTOConfig(liked=0.7, disliked=1.3))
    losses, metrics = kto.loss(model, found, None, {"g": kto.shared(model, found, None)["g"].mean()})
    assert torch.allclose(losses, torch.tensor([0.35, 0.65] * (M // 2)))
    assert (metrics["implicit_reward"] == 0).all() and metrics["reference_point"] == 0
    losses, metrics = RankDPO().loss(model, items(model, 3, gains), None, {})
    assert torch.allclose(losses, math.log(2) * dcg_weights(gains).triu().sum((1, 2)))
    assert (metrics["implicit_accuracy"] == 0.5).all()


def test_swapping_the_pair_changes_the_sign_of_the_margin(model):
    found = items(model)
    losses, forth = DPO.loss(model, found, None, {})
    swapped, back = DPO.loss(model, changed(found, x=found["x"].flip(1)), None, {})
    assert forth["margin"].abs().min() > 1e-6
    assert torch.allclose(back["margin"], -forth["margin"], atol=1e-7)
    assert torch.equal(forth["implicit_accuracy"] + back["implicit_accuracy"], torch.ones(M))
    # -log sigmoid(-a) = a - log sigmoid(a)
    assert torch.allclose(swapped - losses, 0.5 * DPO.config.beta * forth["margin"], atol=1e-4)


def test_the_label_says_which_picture_comes_first(model):
    size = model.resolution[0]
    pictures = torch.rand(4, 2, 3, size, size, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 1, 0])
    data = from_tensors("pairs", list("abcd"), pictures, labels)
    draw = Draw.of(["?"], per_prompt=4, seed=1)
    rows = draw.rows(4)
    latents = data.latents(model, rows)
    assert sorted(rows.tolist()) == [0, 1, 2, 3] and not torch.equal(latents[:, 0], latents[:, 1])
    collected = DPO.collect(model, draw, data).samples["x"]
    for place, row in enumerate(rows.tolist()):
        assert torch.equal(collected[place, 0], latents[place, labels[row]])
        assert torch.equal(collected[place, 1], latents[place, 1 - labels[row]])


@pytest.mark.parametrize(("kind", "k"), [("pairs", 2), ("binary", 1), ("rankings", 3)])
def test_an_epoch_whose_latents_are_kept_touches_no_picture(model, kind, k):
    pictures = torch.rand(4, k, 3, *model.resolution, generator=torch.Generator().manual_seed(2))
    labels = torch.rand(4, k) if kind == "rankings" else torch.tensor([0, 1, 1, 0])
    data, draw = from_tensors(kind, list("abcd"), pictures, labels), Draw.of(["?"], per_prompt=4, seed=1)

    class Plain:
        """Preference data that keep nothing."""

        def __len__(self):
            return 4

        take = data.take

    batches = [recorded_batch(model, draw, Plain(), 0.5), recorded_batch(model, draw, data, 0.5)]
    data.samples = None  # whoever looks at a picture now fails
    batches.append(recorded_batch(model, draw, data, 0.5))
    rows = draw.rows(4)
    for batch in batches:
        assert torch.allclose(batch.samples["x"], batches[0].samples["x"], atol=1e-5)
        assert torch.equal(batch.samples["label"], data.labels[rows])
        assert batch.condition.prompts == batches[0].condition.prompts
    assert set(batches[0].condition.prompts) < {"", *"abcd"}


@pytest.mark.parametrize("shared", [True, False])
def test_time_and_noise_are_shared_where_they_should_be(model, shared):
    _, asked, _ = watched(model, items(model, 3), shared_noise=shared)
    (x, t, noise), (x_ref, t_ref, noise_ref) = asked  # policy and reference
    assert torch.equal(t, t_ref) and torch.equal(noise, noise_ref) and torch.equal(x, x_ref)
    t, noise = t.reshape(M, 3), noise.reshape(M, 3, *model.latent_shape)
    assert torch.equal(t[:, :1].expand(-1, 3), t)
    assert len(set(t[:, 0].tolist())) == M  # rows have times of their own
    assert torch.equal(noise[:, 0], noise[:, 1]) is shared and torch.equal(noise[:, 0], noise[:, 2]) is shared
    assert not torch.isclose(noise[0, 0], noise[1, 0]).all()


def test_techniques_share_noise_as_their_papers_say(model, monkeypatch):
    asked = []

    def remember(*given, **options):
        asked.append(options.get("shared_noise", True))
        return implicit_rewards(*given, **options)

    for module in ("diffusion_dpo", "rankdpo"):
        monkeypatch.setattr(f"surveylib.techniques.preference.{module}.implicit_rewards", remember)
    found = items(model, 2, torch.tensor([[1.0, 0.0]]).repeat(M, 1))
    DPO.loss(model, found, None, {})
    RankDPO().loss(model, found, None, {})
    RankDPO(RankDPOConfig(shared_noise=True)).loss(model, found, None, {})
    assert asked == [True, False, True]


def test_identical_pictures_have_no_margin_and_no_gradient(model):
    found = items(model)
    same = changed(found, x=found["x"][:, :1].expand_as(found["x"]).contiguous())
    losses, metrics = DPO.loss(model, same, None, {})
    assert metrics["margin"].abs().max() < 1e-7  # a batched network may round its rows differently
    assert torch.allclose(losses, torch.full((M,), math.log(2)), atol=1e-4)
    apart, _ = DPO.loss(model, found, None, {})
    assert gradient(model, losses.mean()).norm() < 1e-3 * gradient(model, apart.mean()).norm()


def test_log_sigmoid_stands_before_the_mean(model):
    """A loss for every pair, and the gradient of a pair is weighted by how wrong that pair is."""
    losses, metrics = DPO.loss(model, items(model), None, {})
    half = 0.5 * DPO.config.beta
    expected = torch.log1p(torch.exp(-half * metrics["margin"]))
    assert losses.shape == (M,) and losses.std() > 0.01 and torch.allclose(losses.detach(), expected, atol=1e-5)
    late = math.log1p(math.exp(-half * metrics["margin"].mean().item()))
    assert losses.mean().item() > late + 1e-3  # Jensen
    margin = implicit_rewards(model, items(model)).diff(dim=1)[:, 0]  # loser less winner
    weights = torch.sigmoid(-half * metrics["margin"])
    by_hand = gradient(model, (half * weights * margin).mean())
    found = gradient(model, DPO.loss(model, items(model), None, {})[0].mean())
    assert alike(found, by_hand)


def test_rankdpo_of_two_with_unit_weight_and_shared_noise_is_diffusion_dpo(model):
    rank = RankDPO(RankDPOConfig(beta=DPO.config.beta, weights="unit", shared_noise=True))
    found = items(model, 2, torch.tensor([[1.0, 0.0]]).repeat(M, 1))
    (one, a), (two, b) = rank.loss(model, found, None, {}), DPO.loss(model, found, None, {})
    assert one.std() > 0.01 and torch.allclose(one, two) and torch.equal(a["implicit_accuracy"], b["implicit_accuracy"])
    assert alike(gradient(model, one.mean()), gradient(model, two.mean()))
    turned = changed(found, x=found["x"].flip(1), label=found["label"].flip(1))  # the order in a row says nothing
    assert torch.allclose(rank.loss(model, turned, None, {})[0], two, atol=1e-5)
    apart = RankDPO(RankDPOConfig(beta=DPO.config.beta, weights="unit"))
    assert not torch.allclose(apart.loss(model, found, None, {})[0], two, atol=1e-3)


def test_rankdpo_ties_have_no_pair(model):
    tied = items(model, 3, torch.full((M, 3), 0.5))
    losses, metrics = RankDPO(RankDPOConfig(weights="unit")).loss(model, tied, None, {})
    assert (losses == 0).all() and (metrics["implicit_accuracy"] == 0).all()


def test_ktos_reference_point_is_the_clamped_mean_without_gradient(model):
    found = items(model, 1, torch.tensor([1, 0] * (M // 2)))
    g = KTO.shared(model, found, None)["g"]
    assert not g.requires_grad
    with torch.no_grad():
        assert torch.allclose(g, implicit_rewards(model, found)[:, 0])  # the same times and noise as the loss
    sign = 2.0 * found["label"] - 1
    for mean, z in ((g.abs().mean(), g.abs().mean()), (-g.abs().mean(), torch.tensor(0.0))):
        mean = mean.clone().requires_grad_()
        losses, metrics = KTO.loss(model, found, None, {"g": mean})
        assert metrics["reference_point"].item() == pytest.approx(z.item())
        now = implicit_rewards(model, found)[:, 0]
        by_hand = 1 - torch.sigmoid(sign * KTO.config.beta * (now - z))
        assert torch.allclose(losses, by_hand, atol=1e-5)
        assert torch.autograd.grad(losses.sum(), mean, allow_unused=True, retain_graph=True) == (None,)
        assert alike(gradient(model, losses.mean()), gradient(model, by_hand.mean()))


@pytest.mark.parametrize("lora", [True, False])
def test_the_gradient_of_the_implicit_reward_is_that_of_the_policys_error(lora):
    model = policy(lora=lora)
    s, _, (error, reference) = watched(model, items(model))
    assert error.requires_grad and not reference.requires_grad
    assert torch.equal(s.flatten(), reference - error)
    assert alike(gradient(model, s[:, 0].sum()), -gradient(model, error[::2].sum()))


def png(level, size=8):
    return encode_picture(torch.full((3, size, size), level))


def pair(preference, first=0.2, second=0.8, **more):
    return Record("pair", "a", (png(first), png(second)), preference=preference, **more)


def ranking(*ranks, size=8):
    return Record("ranking", "b", tuple(png(0.1 + 0.2 * i, size) for i in range(len(ranks))), ranks=ranks)


def like(liked, level=0.5, size=8):
    return Record("binary", "c", (png(level, size),), liked=liked)


def test_pairs_from_records():
    data = from_records([pair(1.0), pair(0.5, 0.3, 0.9), pair(0.0, 0.4, 0.8), pair(0.7, 0.8, 0.2)], "pairs")
    feedback = data.take(torch.arange(len(data)))
    assert data.kind == "pairs" and feedback.labels.tolist() == [0, 1, 0] and data.skipped["tie"] == 1
    preferred = feedback.samples[torch.arange(3), feedback.labels].mean((1, 2, 3))
    assert torch.allclose(preferred, torch.tensor([0.2, 0.8, 0.8]), atol=1 / 255)
    assert feedback.samples.shape == (3, 2, 3, 8, 8) and feedback.prompts == ["a"] * 3
    assert len(data.samples) == 3 and data.samples.dtype == torch.uint8  # each picture once, as 8-bit integers


def test_rankings_from_records():
    data = from_records([ranking(2, 1, 3), ranking(1, 1, 2), like(True)], "rankings")
    assert torch.allclose(data.labels, torch.tensor([[0.5, 1.0, 0.0], [0.75, 0.75, 0.0]]))
    assert data.skipped == Counter({"a record of kind binary": 1})
    levels = data.take(torch.tensor([1])).samples.mean((2, 3, 4))
    assert torch.allclose(levels, torch.tensor([[0.1, 0.3, 0.5]]), atol=1 / 255)
    assert torch.allclose(shares_beaten(torch.zeros(4)), torch.full((4,), 0.5))


def test_likes_from_records():
    data = from_records([like(True, 1.0), like(False, 0.25), pair(1.0)], "binary")
    assert data.labels.tolist() == [1, 0] and data.skipped == Counter({"a record of kind pair": 1})
    assert torch.allclose(data.take(torch.tensor([1])).samples, torch.tensor(0.25), atol=1 / 255)
    assert (data.take(torch.tensor([0])).samples == 1).all()  # white stays white


def test_pictures_that_cannot_be_read_are_named_or_counted(tmp_path):
    whole = [ranking(1, 2), like(True)]
    for kind, bad in (("rankings", Record("ranking", "b", (str(tmp_path / "gone.png"), png(0.1)), ranks=(1, 2))),
                      ("binary", Record("binary", "c", (str(tmp_path / "gone.png"),), liked=True))):  # fmt: skip
        with pytest.raises(RecordError, match=r"gone\.png"):
            from_records([*whole, bad], kind)
        data = from_records([*whole, bad], kind, on_error="skip")
        assert len(data) == 1 and sum(data.skipped.values()) == 2 and "missing picture" in data.skipped
    with pytest.raises(RecordError, match=r"gone\.png"):
        from_records([Record("pair", "a", (str(tmp_path / "gone.png"), png(0.1)), preference=1.0)], "pairs")


@pytest.mark.parametrize("records, kind, words", [
    ([pair(1.0)], "triples", "unknown kind of preference data 'triples'; allowed: pairs, rankings, binary"),
    ([], "binary", "no binary record among 0"),
    ([like(True)], "rankings", "no ranking record among 1; left out: {'a record of kind binary': 1}"),
    ([pair(0.5)], "pairs", "no pairs in these records"),
    ([ranking(1, 2), ranking(1, 2, 3)], "rankings", "the same number of pictures in each"),
    ([like(True), like(False, size=12)], "binary", "pictures of one size (give size=)"),
])  # fmt: skip
def test_records_that_do_not_fit_are_refused(records, kind, words):
    with pytest.raises(TechniqueError, match=re.escape(words)):
        from_records(records, kind)


def test_sizes_are_made_equal_when_asked():
    data = from_records([like(True), like(False, size=12)], "binary", size=6)
    assert data.take(torch.arange(2)).samples.shape == (2, 1, 3, 6, 6)


@pytest.mark.parametrize("kind, samples, labels, words", [
    ("pairs", torch.zeros(2, 3, 3, 8, 8), torch.tensor([0, 1]), "pairs have 3 samples a row: 2 for pairs"),
    ("binary", torch.zeros(2, 2, 3, 8, 8), torch.tensor([0, 1]), "binary have 2 samples a row"),
    ("rankings", torch.zeros(2, 1, 3, 8, 8), torch.zeros(2, 1), "rankings have 1 samples a row"),
    ("pairs", torch.zeros(2, 2, 3, 8, 8), torch.tensor([0.5, 1.0]), "labels of pairs are 0 or 1, got [0.5, 1.0]"),
    ("pairs", torch.zeros(2, 2, 3, 8, 8), torch.zeros(2, 2), "labels of pairs have shape (2,), got (2, 2)"),
    ("rankings", torch.zeros(2, 2, 3, 8, 8), torch.tensor([[1, math.nan]] * 2), "gains of rankings must be finite"),
    ("pairs", torch.full((2, 2, 3, 8, 8), 1.5), torch.tensor([0, 1]), "pictures must lie in [0, 1]"),
    ("pairs", torch.full((2, 2, 3, 8, 8), math.nan), torch.tensor([0, 1]), "pictures must lie in [0, 1] and be finite"),
    ("pairs", torch.zeros(2, 2, 1, 8, 8), torch.tensor([0, 1]), "samples are pictures (N, 3, H, W) or points (N, d)"),
    ("pairs", torch.zeros(2, 2), torch.tensor([0, 1]), "samples are (n, k, ...), got (2, 2)"),
    ("pairs", torch.zeros(3, 2, 3, 8, 8), torch.tensor([0, 1]), "members are (n, k) for 2 prompts"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(kind, samples, labels, words):
    with pytest.raises(TechniqueError, match=re.escape(words)):
        from_tensors(kind, ["a", "b"], samples, labels)


def test_members_must_be_there_and_nobody_is_compared_with_himself():
    pictures = torch.rand(2, 3, 8, 8)
    with pytest.raises(TechniqueError, match="members name sample 2; there are 2"):
        RecordedPreferences("pairs", ["a"], pictures, torch.tensor([[0, 2]]), torch.tensor([0]))
    members, labels = torch.tensor([[1, 1], [0, 1]]), torch.tensor([0, 1])
    data = RecordedPreferences("pairs", ["a", "b"], pictures, members, labels)
    assert data.prompts == ["b"] and data.labels.tolist() == [1] and data.skipped["compared with itself"] == 1
    with pytest.raises(TechniqueError, match=r"no usable pairs; left out: \{'compared with itself': 1\}"):
        RecordedPreferences("pairs", ["a"], pictures, members[:1], labels[:1])


def test_a_judge_without_noise_prefers_the_better_sample():
    model = load_model("tiny-sd")

    def bright(pictures, prompts):
        return pictures.mean((1, 2, 3))

    prompts = ["a", "b", "c", "d", "e"]
    data = sampled(model, prompts, bright, temperature=0.0, steps=2, guidance=1.0)
    level = data.take(torch.arange(5)).samples.mean((2, 3, 4))
    assert torch.equal(data.labels, level.argmax(1)) and len(set(data.labels.tolist())) == 2
    ranked = sampled(model, prompts, bright, kind="rankings", k=3, steps=2, guidance=1.0)
    level = ranked.take(torch.arange(5)).samples.mean((2, 3, 4))
    assert torch.equal(ranked.labels.argsort(1), level.argsort(1))
    liked = sampled(model, prompts, bright, kind="binary", k=1, temperature=0.0, threshold=-1.0, steps=2, guidance=1.0)
    assert liked.labels.tolist() == [1] * 5
    with pytest.raises(TechniqueError, match="k=3 samples a prompt do not fit pairs"):
        sampled(model, prompts, bright, k=3)
    with pytest.raises(TechniqueError, match="temperature=-1 must be 0 or more"):
        sampled(model, prompts, bright, temperature=-1)
