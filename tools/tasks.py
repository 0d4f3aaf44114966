"""List the tasks of a stream: `python -m lib.streams STREAM`."""

import sys

from lib.common.errors import UserError, exit_with_one_sentence
from lib.streams import list_tasks

if __name__ == "__main__":
    with exit_with_one_sentence():
        if len(sys.argv) != 2:
            raise UserError(
                "Usage: python -m lib.streams STREAM, such as pocket or the path of a stream.yaml"
            )
        tasks = list_tasks(sys.argv[1])
        lines = tasks.drop(columns="how").to_string(index=False).splitlines()
        for line, how in zip(lines, ["how", *tasks["how"]], strict=True):
            print(f"{line}  {how}")
