"""The engine: any technique on any model. `align` is the generator, `run` the same with a run folder and logs."""
