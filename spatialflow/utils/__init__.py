"""Helpers that every layer may use: errors, files, precision, randomness, pictures, pages."""
