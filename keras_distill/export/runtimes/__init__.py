"""What runs an export: one file per runtime, each of which imports nothing of ours.

Each has `NAME`, what such an export is called, and `Model(path)`, which is called with a dict
of arrays by input name and gives a dict of arrays by output name; `inputs` and
`outputs` are shapes by name, where `None` is any size, and `input_dtypes` and `output_dtypes`
names of dtypes as TensorFlow has them. A fresh process that checks an export runs the file by
its path, so that it sees what a server would.
"""
