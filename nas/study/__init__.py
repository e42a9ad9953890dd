"""A study's YAML as checked, frozen settings. Reads no data: a header is passed in."""
