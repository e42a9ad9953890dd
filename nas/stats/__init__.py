"""Tests and intervals on plain arrays."""
