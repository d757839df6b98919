"""The rules of a COCO panoptic data set, and what is wrong with one."""
