"""Pre-training of the shipped models: scripts that reproduce the checkpoint folders from nothing.

    python -m surveylib.worlds.shapes.pretrain.autoencoder --out runs/autoencoder
    python -m surveylib.worlds.shapes.pretrain.sd --autoencoder runs/autoencoder/vae --out runs/shapes-sd
    python -m surveylib.worlds.shapes.pretrain.clip --out runs/shapes-clip
    python -m surveylib.worlds.shapes.pretrain.sd3 --autoencoder runs/autoencoder/vae \\
        --teacher runs/shapes-sd/pipeline --out runs/shapes-sd3
    python -m surveylib.worlds.shapes.pretrain.decoder --autoencoder runs/autoencoder/vae --out runs/decoder

The last makes the decoder forgiving, for `shapes-sd3`; any model on the same latents may have its decoder.

`release` puts a run among the shipped models; their cards say how long each was trained and what it reaches.
Each can be stopped at any moment and started again with the same command; it goes on from its last checkpoint.
"""
