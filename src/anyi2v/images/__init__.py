"""Condition images: read, fitted, drawn, written."""
