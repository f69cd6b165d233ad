"""Specialists: clusters of confusable classes, a model for each, one answer."""
