"""Rewards: contract, combinators, hand-made rewards, pretrained reward models. `load_reward` finds one by name."""

from surveylib.rewards.contract import FunctionReward, Reward, RewardError
from surveylib.rewards.registry import load_reward, register_reward, reward_names

__all__ = ["FunctionReward", "Reward", "RewardError", "load_reward", "register_reward", "reward_names"]
