"""Webhooks: values and decisions, from signed bytes to the events that are stored."""
