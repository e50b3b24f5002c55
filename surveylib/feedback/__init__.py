"""Feedback: records of what people (or models) judged, the models of how they choose, and the public data sets."""
