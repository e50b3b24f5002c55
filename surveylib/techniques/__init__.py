"""The techniques: one file each, named as in the catalog. `surveylib.techniques.registry` finds them by name."""
