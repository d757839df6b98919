"""Self-contained HTML pages that tell what a search or a study found."""

from spatialflow.report.page import Page, details, drawing, paragraph, picture, table

__all__ = ["Page", "details", "drawing", "paragraph", "picture", "table"]
