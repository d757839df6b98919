"""Layers that Detectron2 and PyTorch lack, or that need other behaviour here."""
