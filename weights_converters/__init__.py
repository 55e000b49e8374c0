"""Conversion of third-party checkpoint layouts to ours."""
