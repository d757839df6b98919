"""Training beside Detectron2's Panoptic FPN."""
