"""surveylib: alignment of diffusion models, each technique a short, exact update rule."""

__version__ = "0.1.0"
