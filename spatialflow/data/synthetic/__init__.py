"""Generated panoptic scenes."""
