"""Check the JSON, images and panoptic PNGs of a data set."""
