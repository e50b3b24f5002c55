"""The five linear layers that the aesthetic predictor and ImageReward put on an embedding."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS, DROPOUTS = (1024, 128, 64, 16, 1), (0.2, 0.2, 0.1)


class LinearHead(nn.Module):
    """width - 1024 - 128 - 64 - 16 - 1, without activations: one affine map once trained.

    Parameter names are the official ones: `layers.{0, 2, 4, 6, 7}`, with dropout at 1, 3 and 5.
    """

    def __init__(self, width: int = 768):
        super().__init__()
        layers: list[nn.Module] = []
        for i, out in enumerate(WIDTHS):
            layers.append(nn.Linear(width, out))
            layers += [nn.Dropout(DROPOUTS[i])] if i < len(DROPOUTS) else []
            width = out
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) to (B,)."""
        return self.layers(x)[:, 0]
