"""Figures opened in a real browser."""

import pytest


@pytest.fixture
def opened(visit, tmp_path):
    """A function that opens a figure as a page of its own; returns (page, problems)."""

    def open_figure(figure, **context):
        return visit(figure.save(tmp_path / "figure.html").as_uri(), **context)

    return open_figure
