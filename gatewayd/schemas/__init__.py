"""The JSON Schemas of the events, shipped with the package."""
