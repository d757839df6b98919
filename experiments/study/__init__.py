"""The study of searched flows against human ones."""
