"""Comparison with Detectron2's Panoptic FPN in training."""
