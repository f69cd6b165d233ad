"""Soft targets on disk: the teacher is paid for once, not once an epoch.

`store.py` is the public class, and describes the files; `rows.py` is what one example
looks like in them; `fingerprints.py` tells examples and teachers apart; `writing.py` and
`joining.py` do what they say.
"""
