"""Pre-training of the shipped models: scripts that reproduce the checkpoint folders from nothing.

    python -m surveylib.worlds.shapes.pretrain.autoencoder --out runs/autoencoder
    python -m surveylib.worlds.shapes.pretrain.sd --autoencoder runs/autoencoder/vae --out runs/shapes-sd

Each can be stopped at any moment and started again with the same command; it goes on from its last checkpoint.
"""
