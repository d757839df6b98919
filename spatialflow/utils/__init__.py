"""Helpers without a layer above them: errors, files, precision, randomness, pictures, pages."""
