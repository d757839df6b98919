"""Self-contained HTML pages that tell what a search or a study found."""

from spatialflow.utils.html.page import Page, beside, details, drawing, paragraph, picture, table

__all__ = ["Page", "beside", "details", "drawing", "paragraph", "picture", "table"]
