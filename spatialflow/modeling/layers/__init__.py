"""Layers that Detectron2 and PyTorch lack, or build otherwise."""
