"""Convert labels of other formats to COCO panoptic layout: one module for each format.

A module has `CATEGORIES`, as they go into the JSON, and `find_sources`, a function from the folders
of a user to the images in them. `writer.py` writes what they give, whatever the format.
"""
