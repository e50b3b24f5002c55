"""Pictures as the judge reads them."""

import torch

from surveylib.evaluation.drawing import at_judges_size


def test_pictures_of_the_worlds_own_size_are_only_clamped(monkeypatch):
    pictures = torch.rand(2, 3, 64, 64, dtype=torch.float16) * 2 - 0.5
    for scale in ("toy", "rehearsal"):
        monkeypatch.setenv("SURVEYLIB_SCALE", scale)
        assert torch.equal(at_judges_size(pictures), pictures.float().clamp(0, 1))


def test_other_sizes_are_averaged_and_in_a_rehearsal_to_cells(monkeypatch):
    pictures = torch.rand(2, 3, 128, 128)
    monkeypatch.setenv("SURVEYLIB_SCALE", "toy")
    expected = pictures.unflatten(2, (64, 2)).unflatten(4, (64, 2)).mean((3, 5))
    torch.testing.assert_close(at_judges_size(pictures), expected)
    monkeypatch.setenv("SURVEYLIB_SCALE", "rehearsal")
    cells = at_judges_size(pictures).unflatten(2, (4, 16)).unflatten(4, (4, 16))
    assert torch.equal(cells, cells[:, :, :, :1, :, :1].expand_as(cells))
    torch.testing.assert_close(cells[:, :, :, 0, :, 0],
                               pictures.unflatten(2, (4, 32)).unflatten(4, (4, 32)).mean((3, 5)))
