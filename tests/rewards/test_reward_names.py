"""A reward's name: with options, of one's own, and refused before anything is loaded."""

import pytest

from surveylib.rewards.contract import FunctionReward, Reward, RewardError
from surveylib.rewards.registry import check_reward, literal, load_reward, split_options

MODULE = """
from surveylib.rewards.contract import FunctionReward

def Plain(images, prompts):
    return images.mean((1, 2, 3))

def Scaled(scale=1.0, absolute=True):
    return FunctionReward(lambda images, prompts: scale * images.mean((1, 2, 3)), f"scaled {absolute}", True, False)

def Number():
    return 3

def Failing():
    return {}["missing"]

ready = Scaled()
"""


@pytest.fixture
def mine(monkeypatch, tmp_path):
    (tmp_path / "named_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import os\nimport gone_package\n")
    (tmp_path / "unreadable_rewards.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_options_are_literals_or_texts():
    assert split_options("aesthetic:head=a/b.pth,local_only=False") == (
        "aesthetic", {"head": "a/b.pth", "local_only": False})
    assert split_options("mine:Scaled:scale=0.5") == ("mine:Scaled", {"scale": 0.5})
    assert split_options("mine:Scaled") == ("mine:Scaled", {}) and split_options("ocr") == ("ocr", {})
    assert [literal(t) for t in ("3", "1e-3", "None", "(0.9, 0.98)", "sf", "a/b.pth", "{[]: 1}")] == [
        3, 1e-3, None, (0.9, 0.98), "sf", "a/b.pth", "{[]: 1}"]


def test_ones_own(mine):
    reward = load_reward("named_rewards:Scaled:absolute=False,scale=2")
    assert isinstance(reward, FunctionReward) and reward.name == "scaled False"
    assert isinstance(load_reward("named_rewards:ready"), Reward)
    with pytest.raises(ValueError, match="made a int, not a Reward"):
        load_reward("named_rewards:Number")


@pytest.mark.parametrize(("name", "words"), [
    ("nonsense", "unknown reward 'nonsense'; known are"),
    ("tiny-nonsense", "no tiny reward model"),
    ("brightness:colour=1", "unexpected keyword argument 'colour'"),
    ("aesthetic:head=a,b", "'b' is no option"),
    ("named_rewards:Plain", r"missing a required argument: 'images'.*makes a Reward.*returns FunctionReward\(func"),
    ("broken_rewards:X", r"module broken_rewards itself fails: ModuleNotFoundError.* at broken_rewards\.py:2"),
    ("unreadable_rewards:X", r"module unreadable_rewards itself fails: SyntaxError: .*unreadable_rewards\.py, line 1"),
    ("named_rewards:ready:scale=1", "takes no options"),
    ("named_rewards:Gone", "no attribute 'Gone'"),
    ("gone_module:X", "No module named"),
])
def test_a_name_is_refused_before_weights_are_read(mine, name, words):
    with pytest.raises(ValueError, match=words):
        check_reward(name)
    with pytest.raises(ValueError, match=words):
        load_reward(name)


def test_checking_loads_nothing(monkeypatch):
    monkeypatch.setattr("surveylib.rewards.pretrained.aesthetic.load", lambda head=None: pytest.fail("loaded"))
    check_reward("aesthetic:head=x.pth")


def test_a_factory_that_fails_is_told_with_its_place(mine, monkeypatch):
    with pytest.raises(RewardError, match=r"making it failed: KeyError\('missing'\) at named_rewards\.py:14$") as told:
        load_reward("named_rewards:Failing")
    assert isinstance(told.value.__cause__, KeyError)
    monkeypatch.setattr("surveylib.rewards.registry._FACTORIES", {"mine": "named_rewards:Failing"})
    with pytest.raises(RewardError, match="'mine': making it failed"):
        load_reward("mine")
