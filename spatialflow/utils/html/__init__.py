"""HTML pages in one file, for the results of a search or a study."""

from spatialflow.utils.html.page import Page, beside, details, drawing, paragraph, picture, table

__all__ = ["Page", "beside", "details", "drawing", "paragraph", "picture", "table"]
