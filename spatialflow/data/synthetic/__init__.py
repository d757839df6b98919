"""Generate panoptic scenes, and register them as data sets."""
