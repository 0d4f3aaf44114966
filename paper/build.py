"""Write what the paper takes from the records: `python -m paper.build` fills `paper/generated`.

`claims.json` holds the published value and interval of every claim, `claims.tex` its sentence, `numbers.tex`
every other number, the other .tex files are tables, and `sources.sha256` pins the records, and the figures'
source data, that all of it follows from; `drawn_at.tex` holds each figure's commit. Nothing in them is
written by hand.
"""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import atomic_path
from lib.common.paths import FIGURES, PAPER_RECORDS, ROOT
from lib.evidence import adviser, scaling
from lib.evidence.analysis import Estimate, improvement_over_dense
from lib.evidence.records import COMPARED, arms, at_shared_budgets, load_records
from lib.networks.backbone import load_backbone
from lib.networks.macs import forward_macs
from lib.runs.profiles import arms_of
from lib.runs.spec import RunSpec
from lib.streams import list_tasks, load_stream
from paper.claims import DISTANCES, Claim, evaluate, load_claims

GENERATED = ROOT / "paper" / "generated"
PINNED = "sources.sha256"
TIMES = FIGURES / "paper" / "06_macs_and_measured_time.csv"


def published_claims() -> list[tuple[Claim, Estimate]]:
    """Every claim and what the committed records give for it."""
    records = load_records("paper", *COMPARED)
    return [(claim, evaluate(claim, records)) for claim in load_claims()]


def generated_files(found: list[tuple[Claim, Estimate]]) -> dict[str, str]:
    """Name -> text of every generated file, given the claims' estimates."""
    records = load_records("paper", *COMPARED)
    estimates = {claim.id: {end: _rounded(value) for end, value in now._asdict().items()} for claim, now in found}
    return {
        "claims.json": json.dumps(estimates, indent=1) + "\n",
        "claims.tex": _macros("claim", {claim.id: claim.sentence(now) for claim, now in found}),
        "numbers.tex": _macros("val", _numbers(records)),
        "tasks.tex": _tasks(),
        "improvement.tex": _improvement(records),
        "floors.tex": _floors(records),
        PINNED: "".join(
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for name, file in _sources().items()
        ),
    }


def _sources() -> dict[str, Path]:
    """What all numbers follow from, by its path in the repository."""
    records = sorted(PAPER_RECORDS.glob("*.parquet"))
    tables = {f"figures/paper/{file.name}": file for file in (TIMES, DISTANCES)}
    return {f"paper/records/{file.name}": file for file in records} | tables


def check(found: list[tuple[Claim, Estimate]]) -> None:
    """Raises UserError for claims that the records do not bear out."""
    if false := [claim.id for claim, now in found if not claim.is_true_of(now)]:
        raise UserError(
            f"The records do not bear out {', '.join(false)}: expected what paper/claims.yaml says under "
            "`holds`. State the claim as it was measured."
        )


def _rounded(value: float) -> float:
    """To six digits, and 0 for what is 0 but for rounding: the rest differs between processors."""
    return 0.0 if abs(value) < 1e-12 else float(f"{value:.6g}")


def _macros(kind: str, texts: dict[str, str]) -> str:
    """LaTeX that lets `\\kind{key}` stand for a text."""
    lines = [f"\\newcommand{{\\{kind}}}[1]{{\\csname {kind}@#1\\endcsname}}"]
    for key, text in texts.items():
        lines.append(f"\\expandafter\\def\\csname {kind}@{key}\\endcsname{{{escaped(text)}}}")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text with the special characters of LaTeX made harmless."""
    return re.sub("([%_&#])", r"\\\1", text)


def _numbers(records: pd.DataFrame) -> dict[str, str]:
    """Numbers of the set-up."""
    tasks = list_tasks("pocket")
    sizes = {
        name: forward_macs(load_backbone(name, pretrained=False), 64)
        for name in ("resnet26_64", "resnet18half_64", "efficientnet_lite0")
    }
    arms = arms_of("paper")
    files = [PAPER_RECORDS / f"{arm}.parquet" for arm in arms]
    spent = [pd.read_parquet(file)["seconds"].sum() for file in files]
    return {
        "tasks": str(len(tasks)),
        "domains": str(tasks["domain"].nunique()),
        "first year": str(tasks["year"].min()),
        "last year": str(tasks["year"].max()),
        "train images": str(arms["dense"]["train_images"]),
        "test images": str(arms["dense"]["evaluation_images"]),
        "smallest budget": f"{records['budget'].min():g}",
        "largest budget": f"{records['budget'].max():g}",
        "shared budget": f"{at_shared_budgets(records)['budget'].max():g}",
        "seeds": str(records["seed"].nunique()),
        "runs": str(len(arms)),
        "arms": str(sum("seed" not in fields for fields in arms.values())),
        **_times(),
        "advice": _advice(records),
        "core hours": f"{sum(spent) / 3600:.1f}",
        "large": f"{sizes['resnet26_64'] / 1e6:.0f}",
        "small": f"{sizes['resnet18half_64'] / 1e6:.0f}",
        "lite": f"{sizes['efficientnet_lite0'] / 1e6:.0f}",
    }


def _times() -> dict[str, str]:
    """What the thinnest of the large network's measured ones saves, in MACs and in time, of training."""
    table = pd.read_csv(TIMES)
    training = table[(table["backbone"] == "resnet26_64") & table["work"].str.startswith("training")]
    row = training.loc[training["share_of_macs"].idxmin()]
    return {"least macs": f"{row['share_of_macs']:.0%}", "least time": f"{row['share_of_time']:.0%}"}


def _advice(records: pd.DataFrame) -> str:
    """What the adviser recommends for a task of nobody's, at the budgets that all arms of the unit share."""
    of_unit = records[records["unit"] == records["unit"].iloc[0]]
    budgets = sorted(at_shared_budgets(of_unit)["budget"].unique())
    advised = [adviser.recommend(budget, "", of_unit).arm for budget in budgets]
    names = {"probe": "a probe of the dense network", "probe_small": "a probe of the small network"}
    said = []
    for arm in dict.fromkeys(advised):
        largest = max(budget for budget, chosen in zip(budgets, advised, strict=True) if chosen == arm)
        said.append(f"{names.get(arm, arm.replace('_', ' '))} up to {largest:g}")
    return ", then ".join(said)


def _tasks() -> str:
    """A table of the stream: one row per task, with the images that are used of it."""
    spec = RunSpec(**arms_of("paper")["dense"])
    rows = []
    for task in load_stream(spec.stream).tasks:
        data = task.read(spec.image_size).first(spec.train_images, spec.evaluation_images)
        outputs = f"{task.num_classes} tags" if task.kind == "multi-label" else str(task.num_classes)
        name = task.name.replace("_", " ")
        rows.append((name, task.domain, task.year, outputs, len(data.train), len(data.test)))
    columns = ["task", "domain", "year", "classes", "training", "test"]
    return _tabular(pd.DataFrame(rows, columns=columns), words=2)


def _improvement(records: pd.DataFrame) -> str:
    """A table of the accuracy gained over dense with channels removed, in %: one row per budget."""
    gains = scaling.by_granularity(records, improvement_over_dense)
    gains = gains[gains["granularity"] == "channel"]
    measured = 100 * gains.filter(like="accuracy_gain")
    texts = gains[["budget", "unit"]].assign(
        ratio=gains["arm"].map(arms(records)["ratio"]),
        text=[f"{gain:+.0f} [{low:+.0f}, {high:+.0f}]" for gain, low, high in measured.itertuples(index=False)],
    )
    wide = texts.pivot(index="budget", columns=["unit", "ratio"], values="text").fillna("--")
    wide = wide.sort_index(axis=1, level="ratio", sort_remaining=False)[records["unit"].unique()]
    wide.columns = [f"{unit.split('@')[0]} {ratio:.0%}" for unit, ratio in wide.columns]
    return _tabular(wide.set_axis([f"{budget:g}" for budget in wide.index]).reset_index(names="budget"))


def _floors(records: pd.DataFrame) -> str:
    """A table of what error is left when compute is plentiful, one row per network that was run so far."""
    fits = scaling.by_granularity(records, scaling.asymptotes).dropna(subset="floor").drop_duplicates("arm")
    seeds = records.groupby(["arm", "budget"])["seed"].nunique().groupby("arm").last()
    rows = []
    for fit in fits.sort_values(["unit", "ratio"], ascending=[False, True]).itertuples():
        network = fit.unit.split("@")[0] + (f", {fit.granularity}" if fit.ratio else "")
        floor = f"{fit.floor:.2f} [{fit.low:.2f}, {fit.high:.2f}]" if fit.identified else "not identified"
        cost = f"{100 * fit.cost:+.1f} [{100 * fit.cost_low:+.1f}, {100 * fit.cost_high:+.1f}]"
        shown = cost if fit.ratio and fit.identified else "--"
        rows.append((network, f"{fit.ratio:.0%}", seeds[fit.arm], floor, shown))
    return _tabular(pd.DataFrame(rows, columns=["network", "removed", "seeds", "floor", "cost (points)"]))


def _tabular(table: pd.DataFrame, words: int = 1) -> str:
    """LaTeX of a table whose first `words` columns are to the left, and the others to the right."""
    columns = "l" * words + "r" * (table.shape[1] - words)
    return table.to_latex(index=False, escape=True, column_format=columns)


def drawn_at() -> str:
    """Macros of the commit whose code drew each figure, shortened; with a + where lib/ had changed since."""
    commits = {file.stem: json.loads(file.read_text())["commit"] for file in sorted((FIGURES / "paper").glob("*.json"))}
    short = {name: commit[:7] + ("+" if commit.endswith("changes") else "") for name, commit in commits.items()}
    return _macros("drawnat", short)


def main() -> None:
    found = published_claims()
    check(found)
    for name, text in {**generated_files(found), "drawn_at.tex": drawn_at()}.items():
        with atomic_path(GENERATED / name) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
