"""Schedules, predictions, dynamics, guidance, rollout, and the models they run on."""

import logging

# diffusers imports image processors it does not need here; transformers then says that torchvision would be faster.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
