"""Where images come from: a run (`drawing`), any diffusers pipeline, a folder that somebody else drew."""
