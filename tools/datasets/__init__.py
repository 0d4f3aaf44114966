"""Turn copies of Nevis'22's data sets into tasks of its streams: `python -m tools.datasets --list`.

One function per data set reads the folder that a copy was unpacked or checked out to and says which image
falls into which part; what they share is in prepare.py. The result is one file per task,
<DATASETS>/folders/NAME.zip, with PART/CLASS/NUMBER.png inside, which lib/streams finds by its name.
"""

from tools.datasets import characters, faces, objects, scenes  # noqa: F401  register their functions
