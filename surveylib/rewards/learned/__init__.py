"""Reward models trained on preferences, on top of any CLIP model: heads, training, evaluation, over-optimisation.

    trunk = load_trunk("shapes-clip", unlock=(2, 0))
    model = RewardModel(trunk, "pickscore")
    for row in train_reward(model, to_pairs(records), PRESETS["toy"], out="runs/reward"):
        ...
    reward = load_learned("runs/reward/model")
"""

from surveylib.rewards.learned.ensemble import Ensemble
from surveylib.rewards.learned.evaluate import RewardReport, evaluate_reward
from surveylib.rewards.learned.model import HEADS, LearnedReward, RewardModel
from surveylib.rewards.learned.store import load_learned, save_learned, shipped_rewards
from surveylib.rewards.learned.train import PRESETS, RewardConfig, RewardTrainingDiverged, train_reward
from surveylib.rewards.learned.trunk import Trunk, load_trunk

__all__ = ["HEADS", "PRESETS", "Ensemble", "LearnedReward", "RewardConfig", "RewardModel", "RewardReport",
           "RewardTrainingDiverged", "Trunk", "evaluate_reward", "load_learned", "load_trunk", "save_learned",
           "shipped_rewards", "train_reward"]
