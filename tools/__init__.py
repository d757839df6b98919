"""Programs for users: analysis, comparison, conversion, installation."""
