"""List the tasks of a stream: `python -m tools.tasks STREAM`."""

import argparse

from lib.common.errors import exit_with_one_sentence
from lib.streams import list_tasks

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.tasks", description="List the tasks of a stream.")
    parser.add_argument("stream", help="a stream's name, such as pocket, or the path of a stream file (.yaml)")
    with exit_with_one_sentence():
        tasks = list_tasks(parser.parse_args().stream)
        lines = tasks.drop(columns="how").to_string(index=False).splitlines()
        for line, how in zip(lines, ["how", *tasks["how"]], strict=True):
            print(f"{line}  {how}")
