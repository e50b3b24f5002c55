"""Public prompt suites: what they hold, where they lie, how they are scored, and loaders of their files.

    prompts = load_suite("geneval", "geneval/prompts")

Prompts are read from files on this machine; where they are missing, the error says what to download. The suites of the
Shapes world, with the judge and GenEval's output format, are in `surveylib.worlds.shapes.suites`.
"""

from surveylib.evaluation.suites.cards import CARDS, SuiteCard
from surveylib.evaluation.suites.loaders import PublicPrompt, load_suite

__all__ = ["CARDS", "PublicPrompt", "SuiteCard", "load_suite"]
