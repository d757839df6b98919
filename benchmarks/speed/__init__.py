"""Speed and memory, compared with Detectron2's own networks and functions."""
