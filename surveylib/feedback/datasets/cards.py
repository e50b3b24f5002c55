"""A card for each public preference data set; the book's table is made from these.

Sizes and licences carry where they were read: "paper" (paper, README or data-set card) or "code" (repository). What was
not verified is left out, or said to be so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NOT_VERIFIED = "not verified"
SOURCES = ("paper", "code")
LABELLERS = ("users", "experts", "annotators", "model", "community signals")


@dataclass(frozen=True)
class DataSetCard:
    """One public data set.

    Attributes:
        key, name: for code and for reading. arxiv: the paper's id, or None.
        kinds: kinds of record (`surveylib.feedback.records.KINDS`) that its loader gives, or that it holds.
        feedback: in words. labelled_by: one of `LABELLERS`.
        size: (text, source) of numbers read in a primary source. licence: as card or README say, else NOT_VERIFIED.
        columns: fields on disk. hub: where it lies.
        module: dotted path of the loader, None where there is none. options: what the loader is called with.
        note: what a user must know.
    """

    key: str
    name: str
    arxiv: str | None
    kinds: tuple[str, ...]
    feedback: str
    labelled_by: str
    size: tuple[tuple[str, str], ...] = ()
    licence: str = NOT_VERIFIED
    columns: tuple[str, ...] = ()
    hub: str = ""
    module: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""


_HERE = "surveylib.feedback.datasets."
_PICKAPIC = (
    "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url",
    "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id",
    "user_id", "num_example_per_prompt",
)  # fmt: skip

_WITH_LOADER = (
    DataSetCard(
        "pickapic_v1", "Pick-a-Pic v1", "2305.01569", ("pair",), "choice between two pictures, ties allowed", "users",
        (("583,747 / 17,439 / 14,073 rows (train / validation / test), 500 in each unique split, 193 GB", "paper"),),
        columns=_PICKAPIC, hub="yuvalkirstain/pickapic_v1", module=_HERE + "pickapic", options={"path_or_hub": "v1"},
        note="Image addresses no longer work: use the bytes. Contains pictures not safe for work.",
    ),
    DataSetCard(
        "pickapic_v2", "Pick-a-Pic v2", "2305.01569", ("pair",), "choice between two pictures, ties allowed", "users",
        (("58,000 prompts, 1,025,015 pictures, 959,000 preferences", "paper"),),
        columns=_PICKAPIC, hub="yuvalkirstain/pickapic_v2", module=_HERE + "pickapic", options={"path_or_hub": "v2"},
        note="Same columns and unique splits as v1. The numbers are those of RankDPO's cost table (arXiv 2410.18013).",
    ),
    DataSetCard(
        "hpd_v1", "HPD v1", "2303.14420", ("pair",), "one choice among 2 to 4 pictures", "users",
        columns=("human_preference", "prompt", "id", "file_path", "user_hash", "contain_name"),
        hub="github.com/tgxs002/align_sd", module=_HERE + "hpd", options={"version": "v1"},
        note="From the Stable Foundation Discord server. Mapped to pairs of the chosen picture with each other one.",
    ),
    DataSetCard(
        "hpd_v2", "HPD v2", "2306.09341", ("pair", "ranking"), "choice between two (train), ranking of nine (test)",
        "annotators", (("798k pairs, 430k pictures, 107k prompts; 645k / 153k pairs (train / test)", "paper"),),
        NOT_VERIFIED,
        ("prompt", "file_path", "human_preference", "image_path", "rank", "raw_annotations"),
        "ymhao/HPDv2", _HERE + "hpd", {"version": "v2"},
        "Script-based on the hub: read from raw files.",
    ),
    DataSetCard(
        "hpd_v3", "HPD v3", "2508.03789", ("pair",), "choice between two pictures, with vote counts", "annotators",
        (("1.08M pictures, 1.17M pairs", "paper"),), "MIT",
        ("prompt", "path1", "path2", "choice_dist", "confidence", "model1", "model2"),
        "MizzenAI/HPDv3", _HERE + "hpd", {"version": "v3"},
        "path1 is the preferred picture. Holds photographs too.",
    ),
    DataSetCard(
        "imagerewarddb", "ImageRewardDB", "2304.05977", ("ranking", "ratings"),
        "ranking of a prompt's pictures and three ratings of 1 to 7", "experts",
        (("137k comparisons", "paper"), ("8k configuration: 141.1k pairs, 49.9k pictures, 8k prompts", "paper"),
         ("validation 412 prompts, 7.32k pairs; test 466 prompts, 7.23k pairs", "paper")),
        "Apache-2.0",
        ("image_path", "prompt_id", "prompt", "classification", "image_amount_in_total", "rank", "overall_rating",
         "image_text_alignment_rating", "fidelity_rating"),
        "THUDM/ImageRewardDB", _HERE + "imagerewarddb",
        note="Script-based on the hub: read from metadata-<split>.parquet and the picture archives.",
    ),
    DataSetCard(
        "richhf18k", "RichHF-18K", "2312.10240", ("rich",),
        "heatmaps of artifacts and misalignment, misaligned words, four scores", "annotators",
        (("17,760 pictures: 15,810 / 995 / 955 (train / dev / test)", "code"),),
        columns=("filename", "aesthetics_score", "artifact_score", "misalignment_score", "overall_score",
                 "artifact_map", "misalignment_map", "prompt_misalignment_label"),
        hub="github.com/google-research-datasets/richhf-18k", module=_HERE + "richhf18k",
        note="Pictures and prompts are those of Pick-a-Pic v1, joined by file name. All scores: higher is better.",
    ),
    DataSetCard(
        "simulacra", "Simulacra Aesthetic Captions", None, ("rating",), "rating of 1 to 10", "users",
        (("over 238,000 pictures, over 176,000 ratings, over 40,000 prompts", "code"),), "CC0-1.0",
        ("generations: id, sid, method, prompt, verified", "images: id, gid, idx", "paths: iid, path",
         "ratings: sid, iid, rating, verified"),
        "github.com/JD-P/simulacra-aesthetic-captions", _HERE + "simulacra",
        note="Users grade on a curve: they rate a weak generator mildly.",
    ),
    DataSetCard(
        "visionprefer", "VisionPrefer", "2404.15100", ("ratings",), "four aspects of 1 to 5, with reasons", "model",
        (("179k prompts, 716k pictures; 1.2M pairs without ties", "paper"),),
        columns=("prompt_id", "prompt", "images: image_id, model, guidance, scores, rationale"),
        hub=NOT_VERIFIED, module=_HERE + "visionprefer",
        note="Labelled by GPT-4 Vision. The names of the picture files could not be verified.",
    ),
    DataSetCard(
        "open_image_preferences", "open-image-preferences v1", None, ("pair",), "choice between two pictures", "users",
        columns=("prompt", "chosen", "rejected"),
        hub="data-is-better-together/open-image-preferences-v1-binarized", module=_HERE + "open_image_preferences",
        note="Pictures of FLUX.1-dev and Stable Diffusion 3.5 Large. The chosen picture stands first.",
    ),
)  # fmt: skip

_WITHOUT_LOADER = (
    DataSetCard(
        "mhp", "MHP (MPS)", "2405.14705", ("ratings",), "choices on four dimensions", "annotators",
        hub="github.com/Kwai-Kolors/MPS",
        note="The choices are not in the public repository. Its counting of accuracy is in "
        "surveylib.feedback.datasets.mhp.",
    ),
    DataSetCard(
        "hpd_v3pp", "HPDv3++", "2606.14657", ("pair",), "choice between two pictures: aesthetics, text following",
        "annotators",
        (("212k pairs; train 100,463 (aesthetics) and 90,908 (text), test 5,720 and 4,465", "code"),), NOT_VERIFIED,
        ("prompt", "path1", "path2"), "Junjun2333/HPDv3-PlusPlus",
        note="Pictures of Qwen-Image. The files have the form of HPD v3.",
    ),
    DataSetCard(
        "syn_pic", "Syn-Pic", "2410.18013", ("ranking",), "rankings by several reward models", "model",
        (("58k prompts x 4 generators = 232k pictures", "paper"),),
        note="A public release was not found; the paper gives the algorithm that makes it.",
    ),
    DataSetCard(
        "social_reward", "Social Reward", "2402.09872", ("pair",), "which picture a community takes up and edits",
        "community signals", columns=("prompt", "pos_path", "neg_path"),
        hub="github.com/Picsart-AI-Research/Social-Reward",
        note="Implicit feedback: nobody was asked to compare.",
    ),
    DataSetCard(
        "visionrewarddb_image", "VisionRewardDB-Image", "2412.21059", ("ratings",), "answers on 18 aspects",
        "annotators",
        (("48K pictures, 60 binary checks each", "code"),), NOT_VERIFIED,
        ("image", "internal_id", "prompt", "url", "annotation", "meta_result", "meta_mask"),
        "THUDM/VisionRewardDB-Image", note="Each aspect has its own scale.",
    ),
    DataSetCard(
        "ava", "AVA", None, ("rating",), "histogram of votes of 1 to 10 on photographs", "users",
        note="Photographs without prompts. The LAION aesthetic predictor was trained on its mean votes.",
    ),
)  # fmt: skip

CARDS = {card.key: card for card in (*_WITH_LOADER, *_WITHOUT_LOADER)}
