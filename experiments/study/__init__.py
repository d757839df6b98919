"""A finished study that compares searched flows with human ones. PLAN.md is its plan."""
