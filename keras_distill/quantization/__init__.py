"""Training on the integer grid that a LiteRT file computes on, and the way into that file."""
