"""Programs to try the project with."""
