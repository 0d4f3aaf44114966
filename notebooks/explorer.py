"""The widgets of notebooks/explore.ipynb: prune, look, fine-tune, and compare with the records."""

from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from ipywidgets import HTML, Button, Dropdown, FloatSlider, HBox, Image, Layout, Text, VBox
from matplotlib.figure import Figure
from style import PAGE_WIDTH, budget_axis, in_style, picture
from torch import Tensor

from lib.common.errors import UserError
from lib.common.files import atomic_path
from lib.common.paths import BUILD
from lib.evidence.adviser import recommend
from lib.evidence.records import COMPARED, arms, load_records
from lib.networks.backbone import Backbone, load_backbone, normalised
from lib.networks.macs import forward_macs
from lib.networks.measure import fidelity, measure_latency
from lib.pruning import plan_pruning
from lib.pruning.criteria import CRITERIA
from lib.pruning.repairs import REPAIRS
from lib.pruning.sites import GRANULARITIES
from lib.runs.run import run_stream
from lib.runs.spec import RunSpec, best_image_size
from lib.streams import list_tasks, load_stream
from measured import mixed_images

BACKBONES = ["efficientnet_lite0", "resnet26_64", "resnet18half_64"]  # they have a rule for the rates
RATES = 1e-4, 1e-2  # of body and head of the others
BUDGETS = [16, 64, 256]
LARGEST, BATCH = 128, 16  # pixels and images, so that a picture takes seconds
CALIBRATION_IMAGES, IMAGES = 32, 64  # for criteria and repairs, and others to measure fidelity on


class Explorer:
    """Choose a pruned network; see what is left of it; fine-tune it with a curve that grows."""

    def __init__(self, out: Path = BUILD / "explore"):
        self.out = out
        self.dense: dict[tuple[str, str | None], tuple[Backbone, Tensor, float]] = {}
        self.backbone = Dropdown(options=BACKBONES, description="backbone")
        self.network = Text(placeholder="or timm:NAME or torchvision:NAME", continuous_update=False)
        self.weights = Text(placeholder="a checkpoint of your own: .pth, .safetensors", continuous_update=False)
        self.ratio = FloatSlider(
            value=0.5, min=0, max=0.9, step=0.05, description="removed", readout_format=".0%", continuous_update=False
        )
        usual = RunSpec(backbone=BACKBONES[0], budgets=BUDGETS, ratio=0)  # the best data-free choice
        self.criterion = Dropdown(options=list(CRITERIA), value=usual.criterion, description="criterion")
        self.repair = Dropdown(options=list(REPAIRS), value=usual.repair, description="repair")
        self.granularity = Dropdown(options=GRANULARITIES, value=usual.granularity, description="granularity")
        self.task = Dropdown(options=list(list_tasks("pocket")["name"]), description="task")
        self.folder = Text(
            placeholder="or a folder of your own: train/<class>/*", layout=Layout(width="28em"), continuous_update=False
        )
        self.start = Button(description="fine-tune", button_style="primary")
        self.summary, self.message, self.classes, self.advice = HTML(), HTML(), HTML(), HTML()
        self.network_picture = Image(format="png")
        self.curve_picture = Image(format="png", layout=Layout(display="none"))
        of_network = self.backbone, self.network, self.weights
        for chosen in (*of_network, self.ratio, self.granularity, self.criterion, self.repair):
            chosen.observe(lambda _: self.prune(), names="value")
        for chosen in (self.task, self.folder):
            chosen.observe(lambda _: self.name_classes(), names="value")
        self.start.on_click(lambda _: self.fine_tune())
        self.view = VBox(
            [
                HBox([self.backbone, self.network, self.weights]),
                self.ratio,
                HBox([self.granularity, self.criterion, self.repair]),
                self.summary,
                self.network_picture,
                HBox([self.task, self.folder, self.start]),
                self.classes,
                self.advice,
                self.message,
                self.curve_picture,
            ]
        )
        self.prune()
        self.name_classes()

    @property
    def chosen(self) -> tuple[str, str | None]:
        """The network's name, and the path of its checkpoint if there is one."""
        weights = self.weights.value.strip()
        named = self.network.value.strip() or self.backbone.value
        return named, str(Path(weights).expanduser()) if weights else None

    @property
    def image_size(self) -> int:
        """The side in pixels that the network is best used at, or the largest that is quick."""
        return min(best_image_size(self.chosen[0]), LARGEST)

    def prune(self) -> None:
        """Show what the chosen pruning leaves."""
        try:
            self._prune()
        except UserError as error:
            self.message.value = f"<b>{escape(str(error))}</b>"

    def _prune(self) -> None:
        if self.chosen not in self.dense:
            name, weights = self.chosen
            network = load_backbone(name, weights=weights)
            mixed = mixed_images(CALIBRATION_IMAGES + IMAGES, self.image_size)
            images = normalised(mixed.permute(0, 3, 1, 2), network)
            took = measure_latency(network, self.image_size, batch_size=BATCH)
            self.dense[self.chosen] = network, images, took
        dense, images, dense_time = self.dense[self.chosen]
        plan = plan_pruning(
            dense,
            self.ratio.value,
            self.criterion.value,
            scope="global",
            granularity=self.granularity.value,
            repair=self.repair.value,
            images=images[:CALIBRATION_IMAGES],
            image_size=self.image_size,
        )
        pruned = plan.apply(dense)
        kept = fidelity(dense, pruned, images[CALIBRATION_IMAGES:])
        macs, before = (forward_macs(network, self.image_size) for network in (pruned, dense))
        time = measure_latency(pruned, self.image_size, batch_size=BATCH)
        self.summary.value = (
            f"<b>{macs / 1e6:.1f}</b> of {before / 1e6:.1f} million MACs ({macs / before:.0%}); "
            f"<b>{time:.0f}</b> of {dense_time:.0f} ms for {BATCH} images ({time / dense_time:.0%}); "
            f"zero-shot fidelity <b>{kept:.2f}</b> (1: untouched, 0: unrelated)"
        )
        self.network_picture.value = picture(_filters(plan.table())).data
        self.message.value = ""

    def fine_tune(self) -> None:
        """Fine-tune at ever larger budgets; the curve grows with each."""
        self.start.disabled = True
        try:
            errors: dict[int, float] = {}
            for budget in BUDGETS:
                self.message.value = f"{budget} dense images ..."
                records = run_stream(self._spec(budget), self.out)
                errors[budget] = records["error_test"].iloc[0]
                self.curve_picture.value = picture(_curve(errors, self._measured_before())).data
                self.curve_picture.layout.display = ""
            self.message.value = ", ".join(f"{b:g}: error {error:.3f}" for b, error in errors.items())
        except UserError as error:
            self.message.value = f"<b>{escape(str(error))}</b>"
        finally:
            self.start.disabled = False

    def name_classes(self) -> None:
        """Show what the chosen task tells apart."""
        try:
            stream, names = self._stream()
            task = load_stream(stream).only(names).tasks[0]
            kinds = "tags" if task.kind == "multi-label" else "classes"
            self.classes.value = f"{task.num_classes} {kinds}: {escape(', '.join(task.classes))}"
            self.advice.value = self._advice()
        except UserError as error:
            self.classes.value, self.advice.value = f"<b>{escape(str(error))}</b>", ""

    def _advice(self) -> str:
        """What did best on the other tasks at each budget, if the committed records are here."""
        try:
            records = _committed()
            labels = arms(records)["label"]
            task = "" if self.folder.value.strip() else self.task.value
            said = [f"<b>{labels[recommend(budget, task, records).arm]}</b> ({budget:g})" for budget in BUDGETS]
        except UserError:
            return ""
        return f"What did best on other tasks, by the budget in dense images: {'; '.join(said)}"

    def _stream(self) -> tuple[str, list[str] | None]:
        """The chosen stream, and which tasks of it."""
        if not (own := self.folder.value.strip()):
            return "pocket", [self.task.value]
        folder = Path(own).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"{own} is not here: expected a folder at {folder} that holds train/<class>/*.")
        stream = self.out / "stream.yaml"
        source = {"name": "mine", "source": f"folder:{folder}", "year": 2000}
        with atomic_path(stream) as temporary:
            temporary.write_text(yaml.safe_dump({"name": "explore", "tasks": [source]}))
        return str(stream), None

    def _spec(self, budget: int) -> RunSpec:
        (name, weights), (stream, tasks) = self.chosen, self._stream()
        return RunSpec(
            backbone=name,
            weights=weights,
            body_rate=None if name in BACKBONES else RATES[0],
            head_rate=None if name in BACKBONES else RATES[1],
            ratio=self.ratio.value,
            granularity=self.granularity.value,
            criterion=self.criterion.value,
            repair=self.repair.value,
            stream=stream,
            tasks=tasks,
            budgets=[budget],
            train_images=400,
            evaluation_images=200,
            image_size=self.image_size,
        )

    def _measured_before(self) -> pd.DataFrame:
        """The front of the committed records, if they are here: on this task, or on all for a folder of one's own."""
        try:
            records = _committed()
        except UserError:
            return pd.DataFrame()
        labels = arms(records)["label"]
        records = records[records["budget"].between(min(BUDGETS), max(BUDGETS))]
        if not self.folder.value.strip():
            records = records[records["task"] == self.task.value]
        means = records.pivot_table("error_test", "budget", "arm")
        return pd.DataFrame({"error": means.min(axis=1), "label": means.idxmin(axis=1).map(labels)})


@cache
def _committed() -> pd.DataFrame:
    """The paper's records: read once, for every task that is chosen asks them."""
    return load_records("paper", *COMPARED)


@in_style
def _filters(table: pd.DataFrame) -> Figure:
    """Filters of every site, before and after."""
    figure = Figure(figsize=(PAGE_WIDTH, 2.2), layout="constrained")
    axes, places = figure.subplots(), np.arange(1, len(table) + 1)
    axes.bar(places, table["before"], color="0.85", label="removed")
    axes.bar(places, table["after"], color="tab:red", label="kept")
    axes.set(xlabel="site, from the image to the representation", ylabel="filters")
    axes.legend()
    return figure


@in_style
def _curve(errors: dict[int, float], front: pd.DataFrame) -> Figure:
    """The errors so far, over the front of what was measured before."""
    figure = Figure(figsize=(PAGE_WIDTH * 0.7, 2.6), layout="constrained")
    axes = figure.subplots()
    if len(front):
        axes.plot(front.index, front["error"], color="gold", linewidth=5, alpha=0.6, label="front")
        for budget, row in front.iterrows():
            axes.annotate(row["label"], (budget, row["error"]), rotation=20, color="0.4")
    axes.plot(list(errors), list(errors.values()), color="tab:red", marker="o", label="this network")
    budget_axis(axes, BUDGETS)
    axes.set(xlabel="budget (dense images)", ylabel="test error")
    axes.legend()
    return figure
