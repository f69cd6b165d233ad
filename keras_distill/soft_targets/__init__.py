"""Soft targets on disk: the teacher is paid for once, not once an epoch.

`store.py` is the public class, and describes the files; `settings.py` lists what a store is
made with; `rows.py` is what one example looks like in a shard; `jobs.py` makes any shard in
any process; `writing.py` and `joining.py` do what they say.
"""
