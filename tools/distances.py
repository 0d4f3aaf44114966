"""How far the tasks are from the images that a network was pretrained on: `python -m tools.distances`.

Writes paper/records/distances/NETWORK.parquet for the tasks of Nevis'22 that the committed records are of: their images
do not come with the code, so that a figure could not measure them.
"""

import pandas as pd

from lib.common.errors import exit_with_one_sentence
from lib.common.files import atomic_path
from lib.common.paths import PAPER_RECORDS
from lib.networks import load_backbone
from lib.networks.measure import distance_to_pretraining
from lib.runs.profiles import arms_of
from lib.runs.spec import RunSpec, best_image_size
from lib.streams import Stream, load_stream

FOLDER = PAPER_RECORDS / "distances"
PROFILES = "nevis", "further"
IMAGES = 50  # of training, the first


def measure(backbone: str, stream: Stream) -> pd.DataFrame:
    """Columns: stream, event, task, distance (nats, `lib.networks.measure.distance_to_pretraining`)."""
    network, size = load_backbone(backbone), best_image_size(backbone)
    rows = [
        (stream.name, event, task.name, distance_to_pretraining(network, task.read(size).train.first(IMAGES).images))
        for event, task in enumerate(stream.tasks)
    ]
    return pd.DataFrame(rows, columns=["stream", "event", "task", "distance"])


def main() -> None:
    """Measure the main network's distances to all tasks of PROFILES that are here."""
    specs = [RunSpec(**next(iter(arms_of(profile).values()))) for profile in PROFILES]
    backbone = specs[0].backbone
    found = [measure(backbone, load_stream(spec.stream, spec.missing).only(spec.tasks)) for spec in specs]
    with atomic_path(FOLDER / f"{backbone}.parquet") as temporary:
        pd.concat(found, ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
