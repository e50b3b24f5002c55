"""The model in the page: export of graphs and weights for "Try it", adapters, precomputed pictures.

    PYTHONPATH=book python -m live.build                   writes book/_static/live (part of `make book`)
    PYTHONPATH=book python -m live.adapters draft ddpo     takes measured adapters into book/live/adapters
"""
