"""Where images come from: a run (`twinbench.drawing`), any diffusers pipeline, a folder that somebody else drew."""
