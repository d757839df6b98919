"""Speed beside Detectron2's own networks and functions."""
