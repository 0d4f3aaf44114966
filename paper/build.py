"""Write what the paper and the README take from the records: `python -m paper.build` fills `paper/generated`.

`claims.json` holds the published value and interval of every claim, `claims.tex` its sentence, `numbers.tex`
every other number, the other .tex files are tables, and `sources.sha256` pins the records, and the figures'
source data, that all of it follows from; `answer.md` is what the README begins with. Nothing in them is written
by hand.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from lib.common.errors import UserError, exit_with_one_sentence
from lib.common.files import atomic_path
from lib.common.paths import FIGURES, PAPER_RECORDS, ROOT
from lib.evidence.analysis import Estimate, carried_on, front, holm, leads, summarised
from lib.evidence.records import (
    COMPARED,
    DENSE,
    ELSE,
    FAMILIES,
    PRUNED,
    at_budgets_of_all_families,
    load_records,
    of_families,
)
from lib.learning.rates import rates
from lib.networks.backbone import load_backbone
from lib.networks.macs import forward_macs
from lib.runs.profiles import COMMITTED, arms_of, records_file
from lib.runs.spec import RunSpec
from lib.streams import list_tasks
from lib.streams.shipped import POCKET
from paper.claims import Claim, Lead, evaluate, load_claims
from tools.datasets.table import absent, events
from tools.tune_rates import LARGER, gain_by_rates, losses_by_rule

GENERATED = ROOT / "paper" / "generated"
README, PAPER = ROOT / "README.md", ROOT / "paper" / "main.tex"
PINNED = "sources.sha256"
LOW_RATE = 1e-3  # a common choice for all layers
TUNING = PAPER_RECORDS / "tuning" / "efficientnet_lite0-independent.parquet"
TIMES = FIGURES / "paper" / "06_macs_and_measured_time.csv"
# The streams, and the profiles that their committed records are of.
STREAMS = {"pocket": "paper", "Nevis'22": "nevis", "further events": "further"}
ALL_SETS = "all data sets"  # of Nevis'22 that the records are of
TABLES = "probed", "trained"  # of claims that have a row
EVERY = (*COMPARED, "criteria", "others", "rates")  # group of arms that there are records of


def committed_records(*groups: str) -> dict[str, pd.DataFrame]:
    """The committed records of groups of arms, by their stream."""
    return {stream: load_records(profile, *groups) for stream, profile in STREAMS.items()}


def claimed_records() -> dict[str, pd.DataFrame]:
    """All committed records that claims are about, by their stream; those of Nevis'22 also as one, ALL_SETS."""
    records = committed_records(*EVERY)
    return records | {ALL_SETS: pooled(records["Nevis'22"], records["further events"])}


def pooled(*streams: pd.DataFrame) -> pd.DataFrame:
    """Records of several streams as those of one: of the arms and budgets that all have, every task once.

    Of a task that a stream has twice, the first event is taken.
    """
    keys = [pd.MultiIndex.from_frame(records[["arm", "budget"]]) for records in streams]
    shared = [all(key in other for other in keys) for key in keys[0].unique()]
    known, tables, offset = keys[0].unique()[shared], [], 0
    for records, key in zip(streams, keys, strict=True):
        is_first = records["event"] == records.groupby("task")["event"].transform("min")
        tables.append(records[is_first & key.isin(known)].assign(event=records["event"] + offset))
        offset += records["event"].max() + 1
    return pd.concat(tables, ignore_index=True)


def published_claims() -> list[tuple[Claim, Estimate | Lead]]:
    """Every claim and what the committed records give for it."""
    records = claimed_records()
    return [(claim, evaluate(claim, records)) for claim in load_claims()]


def generated_files(found: list[tuple[Claim, Estimate | Lead]]) -> dict[str, str]:
    """Name -> text of every generated file, given the claims' estimates."""
    estimates = {claim.id: {end: _rounded(value) for end, value in now._asdict().items()} for claim, now in found}
    compared = committed_records(*COMPARED)
    rivals = pd.concat([_rivals(of_stream).assign(stream=stream) for stream, of_stream in compared.items()])
    sentences = {claim.id: claim.sentence(now) for claim, now in found}
    return {
        "claims.json": json.dumps(estimates, indent=1) + "\n",
        "claims.tex": _macros("claim", sentences),
        "numbers.tex": _macros(
            "val", _numbers(compared, rivals) | _of_the_abstract({claim.id: now for claim, now in found})
        ),
        "tasks.tex": _tasks(),
        "differs.tex": _differs(),
        "front.tex": _front(compared),
        "leads.tex": _leads(rivals),
        **{f"{table}.tex": _in_rows(found, table) for table in TABLES},
        "answer.md": _answer(sentences),
        PINNED: "".join(
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for name, file in _sources().items()
        ),
    }


def _sources() -> dict[str, Path]:
    """What all numbers follow from, by its path in the repository."""
    records = sorted(PAPER_RECORDS.rglob("*.parquet"))
    return {f"paper/records/{file.relative_to(PAPER_RECORDS)}": file for file in records} | {
        f"figures/paper/{TIMES.name}": TIMES
    }


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
    known = f"\\ifcsname {kind}@#1\\endcsname\\csname {kind}@#1\\endcsname"
    lines = [f"\\newcommand{{\\{kind}}}[1]{{{known}\\else\\errmessage{{no {kind} #1}}\\fi}}"]
    for key, text in texts.items():
        lines.append(f"\\expandafter\\def\\csname {kind}@{key}\\endcsname{{{escaped(text)}}}")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text with the special characters of LaTeX made harmless."""
    return re.sub("([%_&#])", r"\\\1", text)


def _numbers(records: dict[str, pd.DataFrame], rivals: pd.DataFrame) -> dict[str, str]:
    """Numbers of the set-up, and how many of the intervals of `rivals` leave zero."""
    tasks = list_tasks("pocket")
    files = [records_file(profile, arm) for profile in COMMITTED for arm in arms_of(profile)]
    spent = sum(pd.read_parquet(file)["seconds"].sum() for file in files)
    arms, nevis = arms_of("paper"), RunSpec(**arms_of("nevis")["probe"])
    usual = RunSpec(**arms["pruned_50"])
    name, side = usual.reference.split("@")
    unit = usual.unit_macs(10)
    sizes = {"lite": (name, int(side)), "eighth": ("resnet18eighth_64", 64), "large": ("resnet26_64", 64)}
    million = {
        key: f"{forward_macs(load_backbone(of, pretrained=False), at) / 1e6:.0f}" for key, (of, at) in sizes.items()
    }
    pruned = records["pocket"].query("ratio > 0 and calibration == 'shipped'")
    chosen = records["Nevis'22"].query("arm == 'probe_30_96px'")["preparation_macs"].max() / unit
    return {
        "tasks": str(len(tasks)),
        "domains": str(tasks["domain"].nunique()),
        "calibration images": str(usual.calibration_images),
        "unit": f"{unit / 1e9:.2f}",
        "nevis events": str(records["Nevis'22"]["event"].nunique()),
        "further events": str(records["further events"]["event"].nunique()),
        "all sets": str(pooled(records["Nevis'22"], records["further events"])["event"].nunique()),
        "nevis all": str(len(list_tasks(nevis.stream))),
        "nevis absent": str(len(absent(nevis.stream))),
        "nevis test": f"{nevis.evaluation_images:,}",
        "arms": str(sum("seed" not in fields for fields in arms.values())),
        "runs": str(len(files)),
        "core hours": f"{spent / 3600:.1f}",
        "intervals": str(len(rivals)),
        "leave zero": str((rivals["p"] < 0.05).sum()),
        "after Holm": str((holm(rivals["p"].to_numpy()) < 0.05).sum()),
        "preparation": f"{pruned['preparation_macs'].max() / unit:,.0f}",
        "preparation chosen": f"{chosen:,.0f}",
        "preparation tasks": f"{chosen / 64:.0f}",
        "seed sd": f"{_seed_deviation(records['pocket']):.1f}",
        **_times(),
        **_gains(),
        **million,
    }


def _of_the_abstract(found: dict[str, Estimate | Lead]) -> dict[str, str]:
    """How many leads the abstract has, and how many of them leave zero, before and after Holm's correction."""
    abstract = PAPER.read_text().partition(r"\end{abstract}")[0]
    p = np.array([found[claim].p for claim in re.findall(r"\\claim{([^}]+)}", abstract)])
    counts = {
        "abstract leads": len(p),
        "abstract leave zero": (p < 0.05).sum(),
        "abstract after Holm": (holm(p) < 0.05).sum(),
    }
    return {name: str(count) for name, count in counts.items()}


def _seed_deviation(records: pd.DataFrame) -> float:
    """The standard deviation over seeds of what was run with three, in points, of a task (root of the mean square)."""
    fine_tuned = records[records["learner"] == "independent"]
    of_seeds = fine_tuned.groupby(["arm", "budget", "event"])["error_test"].agg(["count", "var"])
    return 100 * of_seeds.loc[of_seeds["count"] == 3, "var"].mean() ** 0.5


def _times() -> dict[str, str]:
    """Shares of the dense network's MACs and time: of training the thinnest pruned network and the small one, and of
    looking at images through the recommended network and through dense at its pixels."""
    table = pd.read_csv(TIMES)
    training = table[table["work"].str.startswith("training")].set_index("network")
    looking = table[table["work"] == "forward, batch 32"].set_index("network")["share_of_time"]
    thinnest = training.loc[training[training["family"] == "pruned"]["share_of_macs"].idxmin()]
    small = training.loc["half ResNet-18"]
    shares = {
        **{"least macs": thinnest["share_of_macs"], "least time": thinnest["share_of_time"]},
        **{"small macs": small["share_of_macs"], "small time": small["share_of_time"]},
        **{"chosen time": looking["96 px, 30% removed"], "pixels time": looking["96 px"]},
    }
    return {name: f"{share:.0%}" for name, share in shares.items()}


def _gains() -> dict[str, str]:
    """On the tuning's dev images: what half of the channels removed gain by one low rate and by the committed pair,
    and what one pair or more lose to the best."""
    errors = pd.read_parquet(TUNING)
    table = gain_by_rates(errors, *rates("independent", "efficientnet_lite0"))
    rows = {"low gains": f"one rate, {LOW_RATE:g}", "tuned gains": "the committed pair"}
    said = {name: ", ".join(f"{points:+.1f}" for points in table.loc[row]) for name, row in rows.items()}
    budgets = ", ".join(f"{budget:,}" for budget in table.columns)
    lost = {f"lost by {rule}": f"{points:.1f}" for rule, points in losses_by_rule(errors).items()}
    return {"low rate": f"{LOW_RATE:g}", "tuning budgets": budgets, **said, **lost} | _at_larger_budgets()


def _at_larger_budgets() -> dict[str, str]:
    """On the tuning's dev images at a larger budget: what dense and half removed reach at each rate of the body."""
    # Rounded, so that a value halfway between two tenths is said alike on every processor.
    accuracy = (100 * (1 - pd.read_parquet(LARGER).pivot_table("error_dev", "ratio", "body_rate"))).round(6)
    said = {
        name: ", ".join(f"{one:.1f}" for one in row)
        for name, row in zip(("dense", "half"), accuracy.to_numpy(), strict=True)
    }
    return {f"larger {name}": values for name, values in said.items()} | {
        "larger rates": ", ".join(f"{rate:g}" for rate in accuracy.columns)
    }


def _tasks() -> str:
    """A table of the stream, from its cards: one row per task."""
    rows = []
    for card in json.loads((POCKET / "cards.json").read_bytes()):
        outputs = f"{card['num_classes']} tags" if card["kind"] == "multi-label" else str(card["num_classes"])
        counts = card["counts"]["train"], card["counts"]["test"]
        rows.append((card["name"].replace("_", " "), card["domain"], card["year"], outputs, *counts))
    columns = ["task", "domain", "year", "classes", "training", "test"]
    return _tabular(pd.DataFrame(rows, columns=columns), words=2)


def _differs() -> str:
    """A table of Nevis'22's data sets that were run, and what differs from the benchmark's."""
    rows = events(RunSpec(**arms_of("nevis")["probe"]).stream)
    rows["images"] = [f"{row.images:,} of {row.official:,}" for row in rows.itertuples()]
    rows["data set"] = rows["name"] + " (" + rows["years"] + ")"
    columns = ["data set", "differs", "images", "classes", "train", "test"]
    return rows[columns].to_latex(index=False, escape=True, column_format="lp{0.45\\textwidth}rrrr")


def _front(records: dict[str, pd.DataFrame]) -> str:
    """A table of the accuracy of each family's best arm, chosen on the other tasks: a row a stream and budget."""
    fronts = [front(carried_on(of_stream)).assign(stream=stream) for stream, of_stream in records.items()]
    rows = pd.concat(fronts).pivot(index=["stream", "budget"], columns="family", values="accuracy")
    said = rows.reindex(columns=FAMILIES).map(lambda value: "--" if pd.isna(value) else f"{value:.1f}")
    return _tabular(said.loc[[*records]].reset_index())


def _rivals(of_stream: pd.DataFrame) -> pd.DataFrame:
    """The best pruned network against the best dense one and the best of everything else, at each budget."""
    of_stream = at_budgets_of_all_families(carried_on(of_stream))
    others = {"dense": DENSE, "fewer pixels, or another network": ELSE, "the best that is not pruned": (*DENSE, *ELSE)}
    found = []
    for rival, families in others.items():
        sides = of_families(of_stream, *PRUNED), of_families(of_stream, *families)
        found.append(summarised(leads(of_stream, *sides)).assign(rival=rival))
    return pd.concat(found, ignore_index=True)


def _leads(rivals: pd.DataFrame) -> str:
    """A table of what the best pruned network leads others by, in points with intervals, and relative."""
    rows = []
    for row in rivals.itertuples():
        points = _with_interval(row.points, row.low, row.high)
        reached = f"{row.accuracy:.1f}", f"{row.over:.1f}"
        rows.append((row.stream, row.budget, row.rival, *reached, points, f"{row.relative:+.1f} %"))
    columns = ["stream", "budget", "against", "pruned", "other", "points", "relative"]
    return _tabular(pd.DataFrame(rows, columns=columns), words=3)


def _with_interval(points: float, low: float, high: float) -> str:
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


def _in_rows(found: list[tuple[Claim, Estimate | Lead]], table: str) -> str:
    """A table of the claims that have a row in it: by what is removed, stream and rival, as they come, then budget."""
    rows = []
    for claim, now in found:
        if table in claim.row[:1]:
            points = _with_interval(now.value, now.low, now.high)
            reached = f"{now.reached:.1f}", f"{now.over:.1f}", points, f"{round(now.relative):+d} %"
            rows.append((claim.row[1], claim.stream.split()[0], claim.row[2], claim.arguments["budget"], *reached))
    columns = ["removed", "stream", "over", "budget", "reaches", "other", "points", "gain"]
    shown, about = pd.DataFrame(rows, columns=columns), columns[:3]
    shown = shown.sort_values(
        columns[:4], key=lambda column: column if column.name == "budget" else column.factorize()[0]
    )
    shown[about] = shown[about].mask((shown[about] == shown[about].shift()).cummin(axis=1), "")
    return _tabular(shown, words=3)


def _answer(sentences: dict[str, str]) -> str:
    """The README's answer: the claims whose identity begins with `answer`, a line each."""
    return "".join(f"- {text}\n" for claim, text in sentences.items() if claim.startswith("answer"))


def with_answer(readme: str, answer: str) -> str:
    """The README with the answer between its two marks."""
    return re.sub(r"(?s)(<!-- answer -->\n).*?(<!-- /answer -->)", lambda marks: marks[1] + answer + marks[2], readme)


def _tabular(table: pd.DataFrame, words: int = 1) -> str:
    """LaTeX of a table whose first `words` columns are to the left, and the others to the right."""
    columns = "l" * words + "r" * (table.shape[1] - words)
    return table.to_latex(index=False, escape=True, column_format=columns)


def main() -> None:
    found = published_claims()
    check(found)
    written = {GENERATED / name: text for name, text in generated_files(found).items()}
    written[README] = with_answer(README.read_text(), written[GENERATED / "answer.md"])
    for file, text in written.items():
        with atomic_path(file) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
