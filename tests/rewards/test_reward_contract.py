"""The contract of rewards and the registry."""

import pytest
import torch

from surveylib.rewards import FunctionReward, Reward, RewardError, load_reward, register_reward, reward_names
from surveylib.rewards.learned.store import shipped_rewards


def mean(images, prompts):
    return images.mean((1, 2, 3))


def reward_of(function, **options):
    return FunctionReward(function, "mine", **options)


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("images, words", [
    (IMAGES[0], r"\(B, 3, H, W\), not \(3, 8, 8\)"),
    (IMAGES[:, :1], r"not \(3, 1, 8, 8\)"),
    ((IMAGES * 255).byte(), "divide by 255"),
    (IMAGES * 2 - 1, r"outside \[0, 1\].*rows 0, 1, 2"),
    (IMAGES.index_fill(0, torch.tensor(1), float("nan")), "NaN or infinity in the pictures of row 1$"),
    ([[1]], "not list"),
])
def test_wrong_pictures_are_named(images, words):
    with pytest.raises(RewardError, match=f"'mine'.*{words}"):
        reward_of(mean)(images, ["a"] * 3)


@pytest.mark.parametrize("prompts, words", [
    (["a"], "1 prompts for 3 pictures"), ("abc", "not one text"), (None, "needs prompts"), (["a", 1, "b"], "row 1"),
])
def test_wrong_prompts_are_named(prompts, words):
    with pytest.raises(RewardError, match=words):
        reward_of(mean)(IMAGES, prompts)


@pytest.mark.parametrize("function, words", [
    (lambda x, p: x.mean((2, 3)), r"shape \(3, 3\)"),
    (lambda x, p: torch.tensor([0, float("nan"), float("inf")]), "NaN or infinity in rows 1, 2"),
    (lambda x, p: [1.0, 2.0, 3.0], "returned a list"),
    (lambda x, p: x.mean((1, 2, 3)).to(torch.complex64), "complex64"),
])
def test_wrong_scores_are_named(function, words):
    with pytest.raises(RewardError, match=f"'mine'.*{words}"):
        reward_of(function)(IMAGES, ["a"] * 3)


@pytest.mark.parametrize("error", [KeyError("missing"), ValueError("not enough"), OSError("gone"), ImportError("x")])
def test_an_error_in_a_users_reward_is_told_with_its_place(error):
    class Mine(Reward):
        name = "mine"

        def score(self, images, prompts):
            raise error

    def function(images, prompts):
        raise error

    for reward in (Mine(), reward_of(function)):
        with pytest.raises(RewardError, match=rf"reward 'mine' failed: {type(error).__name__}\(.* at "
                                              r"test_reward_contract\.py:\d+$") as told:
            reward(IMAGES, ["a"] * 3)
        assert told.value.__cause__ is error


def test_the_place_is_in_the_users_code_also_where_torch_refused():
    with pytest.raises(RewardError, match=r"failed: RuntimeError\(.* at test_reward_contract\.py:\d+$"):
        reward_of(lambda x, p: torch.nn.functional.conv2d(x, torch.zeros(1, 5, 3, 3)))(IMAGES, ["a"] * 3)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RewardError("mine"),
                                   KeyboardInterrupt()])
def test_what_a_users_reward_may_raise(error):
    def function(images, prompts):
        raise error

    with pytest.raises(type(error)) as told:
        reward_of(function)(IMAGES, ["a"] * 3)
    assert told.value is error


def test_errors_of_our_own_rewards_stay_what_they_are(monkeypatch):
    reward = load_reward("shapes_quality")
    with pytest.raises(ValueError) as told:
        reward(IMAGES)
    assert not isinstance(told.value, RewardError)


@pytest.mark.parametrize("name", ["faithfulness", "faithfulness_hard"])
def test_a_prompt_outside_the_grammar_is_named_whole(name):
    with pytest.raises(ValueError, match="the prompt 'a cat in the rain' is none of the Shapes world"):
        load_reward(name)(torch.rand(2, 3, 64, 64), ["a red circle", "a cat in the rain"])


def test_gradients_follow_the_promise():
    images = IMAGES.clone().requires_grad_()
    reward_of(mean, differentiable=True)(images, ["a"] * 3).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 192))
    assert not reward_of(mean)(images, ["a"] * 3).requires_grad
    with pytest.raises(RewardError, match="carry no gradient"):
        reward_of(lambda x, p: mean(x.detach(), p), differentiable=True)(images, ["a"] * 3)


def test_calls_are_counted_and_reported():
    reward, seen = reward_of(mean, needs_prompt=False), []
    reward.on_call = lambda name, count: seen.append((name, count))
    assert reward(IMAGES).shape == (3,) and reward(IMAGES[:1]).dtype == torch.float32
    assert reward(IMAGES[:0]).shape == (0,)
    assert reward.calls == 4 and seen == [("mine", 3), ("mine", 1)] and Reward.calls == 0


def test_step_rewards_say_when_they_are_none():
    with pytest.raises(NotImplementedError, match="judges pictures only"):
        reward_of(mean).score_latents(IMAGES, torch.zeros(3), ["a"] * 3)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown reward 'pikscore'.*pickscore.*imagereward"):
        load_reward("pikscore")


def test_registered_names_load(monkeypatch):
    monkeypatch.setattr("surveylib.rewards.registry._FACTORIES", {})
    register_reward("bright", "surveylib.rewards.handmade:Brightness")
    assert reward_names() == ("bright", *shipped_rewards())
    assert load_reward("bright", device="cpu").name == "brightness"
    with pytest.raises(ValueError, match="is taken"):
        register_reward("bright", "surveylib.rewards.handmade:Colourfulness")
    with pytest.raises(ValueError, match="module:callable"):
        register_reward("other", "surveylib.rewards.handmade")


def test_learned_and_tiny_rewards_load_under_their_names():
    for name in [*shipped_rewards(), "tiny-pickscore"]:
        scores = load_reward(name)(torch.rand(2, 3, 64, 64), ["a red circle", "a blue square"])
        assert scores.shape == (2,)
    with pytest.raises(ValueError, match="unknown reward 'shapes-nothing'"):
        load_reward("shapes-nothing")


@pytest.mark.parametrize("name", ["jpeg_compressibility", "jpeg_incompressibility", "brightness", "colourfulness",
                                  "faithfulness", "faithfulness_hard", "shapes_quality", "count_and_colour"])
def test_rewards_without_weights_load_under_their_name(name):
    reward = load_reward(name)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = reward(images, ["a red circle", "a blue square"])
    assert reward.name == name and (scores >= reward.range[0]).all() and (scores <= reward.range[1]).all()
