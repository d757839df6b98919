"""Studies: plan, code and kept results, each in a folder."""
