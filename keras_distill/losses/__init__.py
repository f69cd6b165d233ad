"""Formulas only: tempered KL, logits, features, sums, and how they meet the tensors."""
