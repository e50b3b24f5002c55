"""Cards of the evaluation: metrics of generators."""

from .card import Card

CARDS = (
    # metrics: image-text agreement
    Card("clipscore", "CLIPScore", "metrics",
         "CLIPScore: A Reference-free Evaluation Metric for Image Captioning",
         "2104.08718", "EMNLP", 2021,
         group="image-text agreement", chapter="evaluation/01_good_right_preferred",
         module="surveylib.rewards.pretrained.clip_score"),
    Card("llmscore", "LLMScore", "metrics",
         "LLMScore: Unveiling the Power of Large Language Models in Text-to-Image Synthesis Evaluation",
         "2305.11116", "NeurIPS", 2023,
         group="image-text agreement", lists=("evaluation",)),
    Card("vpeval", "VPGen and VPEval", "metrics",
         "Visual Programming for Text-to-Image Generation and Evaluation",
         "2305.15328", "NeurIPS", 2023,
         group="image-text agreement", lists=("evaluation",)),
    Card("vqascore", "VQAScore", "metrics",
         "Evaluating Text-to-Visual Generation with Image-to-Text Generation",
         "2404.01291", "ECCV", 2024,
         group="image-text agreement", lists=("evaluation",),
         module="surveylib.rewards.pretrained.vqascore"),
    # metrics: style
    Card("style_similarity", "Style similarity", "metrics",
         "Measuring Style Similarity in Diffusion Models",
         "2404.01292", "arXiv", 2024,
         group="style", lists=("evaluation",)),
    # metrics: faces
    Card("f_bench", "F-Bench", "metrics",
         "F-Bench: Rethinking Human Preference Evaluation Metrics in Face Generation",
         None, "ICCV", 2025,
         group="faces", lists=("evaluation",)),
    # metrics: distributions
    Card("fid", "FID", "metrics",
         "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
         "1706.08500", "NeurIPS", 2017,
         group="distributions", chapter="evaluation/01_good_right_preferred",
         module="surveylib.evaluation.metrics.distributions"),
    Card("kid", "KID", "metrics",
         "Demystifying MMD GANs",
         "1801.01401", "ICLR", 2018,
         group="distributions", chapter="evaluation/01_good_right_preferred",
         module="surveylib.evaluation.metrics.distributions"),
    Card("precision_recall", "Precision and recall", "metrics",
         "Improved Precision and Recall Metric for Assessing Generative Models",
         "1904.06991", "NeurIPS", 2019,
         group="distributions", chapter="evaluation/01_good_right_preferred",
         module="surveylib.evaluation.metrics.distributions"),
    # metrics: diversity
    Card("vendi", "Vendi score", "metrics",
         "The Vendi Score: A Diversity Evaluation Metric for Machine Learning",
         "2210.02410", "TMLR", 2023,
         group="diversity", chapter="evaluation/01_good_right_preferred",
         module="surveylib.evaluation.metrics.diversity"),
)
