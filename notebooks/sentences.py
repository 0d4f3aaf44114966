"""What a figure shows, in a title and in a sentence, worked out from the numbers that it draws."""

import pandas as pd
from IPython.display import Markdown
from scipy.stats import spearmanr
from style import budget_said, images_said, short

from lib.evidence.analysis import MARGIN, Estimate


def listed(words: list[str]) -> str:
    """16, 64 and 256."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def points(value: float, digits: int = 1) -> str:
    """A signed number, such as points of accuracy, with a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")  # noqa: RUF001


def interval(row: pd.Series) -> str:
    """A lead and its interval: +1.2 points [0.4, 2.0]."""
    return f"{points(row['points'])} points [{points(row['low'])}, {points(row['high'])}]"


def where(summary: pd.DataFrame, verdict: str) -> str:
    """The budgets at which the rows of `summarised` have a verdict, "" if none."""
    budgets = [budget_said(budget) for budget in summary.loc[summary["verdict"] == verdict, "budget"]]
    return f"{listed(budgets)} dense images" if budgets else ""


def front_title(summaries: dict[str, pd.DataFrame]) -> str:
    """Where the best pruned network is sure to lead the best that is not pruned."""
    said = {name: where(summary, "ahead") for name, summary in summaries.items()}
    if not any(said.values()):
        return "No pruned network is sure to lead every alternative at any budget"
    parts = [
        f"at {budgets} ({name})" if len(said) > 1 else f"at {budgets}" for name, budgets in said.items() if budgets
    ]
    return f"Pruned leads the best alternative {', '.join(parts)}"


def front_sentence(found: dict[str, pd.DataFrame], hindsight: dict[str, pd.DataFrame]) -> Markdown:
    """Of each stream the largest lead, where it is sure, and what the choice and the number of intervals do to it."""
    return Markdown("\n\n".join(_lead_said(name, table, hindsight[name]) for name, table in found.items()))


def _lead_said(name: str, summary: pd.DataFrame, hindsight: pd.DataFrame) -> str:
    best, moved = summary.loc[summary["points"].idxmax()], (summary["points"] - hindsight["points"]).abs().max()
    verbs = {"ahead": "leads", "behind": "trails", "equal": f"is within {MARGIN:g} point of"}
    sure = [f"it {verb} it at {where(summary, verdict)}" for verdict, verb in verbs.items() if where(summary, verdict)]
    return (
        f"**On {name}, the best pruned network reaches {best['accuracy']:.1f} % at a budget of "
        f"{budget_said(best['budget'])} dense images, the best that is not pruned {best['over']:.1f} % "
        f"({interval(best)}); {'; '.join(sure) or 'at no budget is the difference sure'}.** "
        f"Of {len(summary)} intervals {(summary['p'] < 0.05).sum()} leave zero, and {(summary['p_holm'] < 0.05).sum()} "
        "still do after Holm's correction. Choosing the pruned one in hindsight, too, moves a lead by at most "
        f"{moved:.1f} points."
    )


def said_leads(table: pd.DataFrame, *by: str) -> pd.DataFrame:
    """A table of `summarised` to be read: accuracy, the other's, the lead with its interval, p values and verdict."""
    shown = {
        "accuracy": table["accuracy"].round(1),
        "the other's": table["over"].round(1),
        "lead": [interval(row) if row["low"] == row["low"] else points(row["points"]) for _, row in table.iterrows()],
        "gained (%)": table["relative"].map(points),
        "p": table["p"].map("{:.3f}".format),
        "p (Holm)": table["p_holm"].map("{:.3f}".format),
        "verdict": table["verdict"],
    }
    return pd.DataFrame(shown).set_index(pd.MultiIndex.from_frame(table[list(by)]))


def size_title(optima: dict[str, pd.DataFrame]) -> str:
    """How the best size by the first route moves with the budget; by what power only where every optimum is inside."""
    route, best = next(iter(optima.items()))
    first = best.iloc[0]
    if first["slope_low"] <= 0:
        return f"By {route}, the best size is not sure to grow with the budget"
    power = f": as the budget to the {first['slope']:.2f}" if best["within"].all() else ""
    return f"The more compute, the larger the best network by {route}{power}"


def size_sentence(name: str, best: pd.DataFrame) -> Markdown:
    """The optimum at the smallest and at the largest budget, and the slope."""
    first, last = best.iloc[0], best.iloc[-1]
    ends = [budget_said(row["budget"]) for _, row in best.iterrows() if not row["within"]]
    beyond = f" At {listed(ends)} the optimum is an end of what was measured." if ends else ""
    return Markdown(
        f"**{name.capitalize()}: the best size goes from {first['macs'] / 1e6:.0f} million MACs at "
        f"{budget_said(first['budget'])} dense images to {last['macs'] / 1e6:.0f} million at "
        f"{budget_said(last['budget'])}, as the budget to the {first['slope']:.2f} "
        f"[{first['slope_low']:.2f}, {first['slope_high']:.2f}].**{beyond}"
    )


def map_title(leads: pd.DataFrame) -> str:
    """On how many tasks pruning leads dense where it does so most."""
    most = leads.groupby("budget")["points"].mean().idxmax()
    at = leads[leads["budget"] == most]
    return f"At {budget_said(most)} dense images {(at['points'] > 0).sum()} of {len(at)} tasks gain over dense"


def map_sentence(domains: pd.DataFrame) -> Markdown:
    """The domains of the largest and of the smallest lead, of a table of `summarised` at one budget."""
    best, worst = (domains.loc[getattr(domains["points"], end)()] for end in ("idxmax", "idxmin"))
    return Markdown(
        f"**At {budget_said(best['budget'])} dense images pruning leads dense most on {best['domain']} "
        f"({points(best['points'])} points) and least on {worst['domain']} ({points(worst['points'])}).**"
    )


def learners_title(table: pd.DataFrame) -> str:
    """Which way to learn is the best over all budgets, and which the worst; of a single one, whether it leads."""
    means = table.groupby("learner")["points"].mean()
    if len(means) == 1:
        verb = "leads" if means.iloc[0] > 0 else "trails"
        return f"Over all budgets, {means.index[0]} {verb} fine-tuning all layers"
    return f"Over all budgets, {means.idxmax()} is the best way to learn and {means.idxmin()} the worst"


def learners_sentence(table: pd.DataFrame) -> Markdown:
    """For each network the largest lead over fine-tuning all layers, and who is ahead at the largest budget."""
    said = []
    for network, part in table.groupby("network", sort=False):
        best, last = part.loc[part["points"].idxmax()], part[part["budget"] == part["budget"].max()]
        ahead = list(last.loc[last["low"] > 0, "learner"])
        said.append(
            f"{network}: {best['learner']} leads fine-tuning all layers by {interval(best)} at "
            f"{budget_said(best['budget'])} dense images; at {budget_said(last['budget'].iloc[0])} "
            + (
                f"{listed(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead of it"
                if ahead
                else "nothing is ahead of it"
            )
        )
    return Markdown(f"**{'. '.join(said)}.**")


def passes_title(by_compute: float, by_passes: float) -> str:
    """Whether image passes or compute tell more of how far fine-tuning gets."""
    better = "Image passes explain" if by_passes > by_compute else "Compute explains"
    first, second = sorted((by_passes, by_compute), reverse=True)
    other = "compute" if by_passes > by_compute else "image passes"
    return f"{better} {first:.0%} of how far fine-tuning gets, {other} {second:.0%}"


def rates_title(rule: pd.DataFrame) -> str:
    """What the committed pair loses to the best pair of rates of each panel."""
    lost = 100 * (rule["error_dev"] - rule["best"])
    return (
        f"One pair of rates loses {lost.mean():.1f} points on average, {lost.max():.1f} at most, to each panel's best"
    )


def distance_sentence(table: pd.DataFrame) -> Markdown:
    """The rank correlation of each lead with the distance."""
    said = []
    for name, part in table.groupby("panel", sort=False):
        rank = spearmanr(part["distance"], part["points"])
        said.append(f"{name}: {points(rank.statistic, 2)} (p = {rank.pvalue:.2f}, {len(part)} tasks)")
    return Markdown(f"**Rank correlation of a task's lead with its distance, {'; '.join(said)}.**")


def distance_title(table: pd.DataFrame) -> str:
    """Whether any lead is related to the distance."""
    found = {name: spearmanr(part["distance"], part["points"]) for name, part in table.groupby("panel", sort=False)}
    grows = [name for name, rank in found.items() if rank.pvalue < 0.05 and rank.statistic > 0]
    falls = [name for name, rank in found.items() if rank.pvalue < 0.05 and rank.statistic < 0]
    said = [f"larger: {listed(grows)}"] * bool(grows) + [f"smaller: {listed(falls)}"] * bool(falls)
    if not said:
        return "No lead is sure to depend on how far a task is from pretraining"
    return f"The further from the pretraining images, the {'; the '.join(said)}"


def dots_title(table: pd.DataFrame) -> str:
    """The alternative that is furthest behind, and whether one is ahead."""
    worst, ahead = table.loc[table["points"].idxmin()], table[table["low"] > 0]
    found = (
        f"{len(ahead['label'].unique())} alternatives lead it somewhere" if len(ahead) else "no alternative leads it"
    )
    return f"What costs most is {worst['label']} ({points(worst['points'])} points); {found}"


def dots_sentence(table: pd.DataFrame) -> Markdown:
    """Every alternative with an interval that leaves zero."""
    sure = table[table["verdict"].isin(["ahead", "behind"])]
    said = [f"{row['label']} at {budget_said(row['budget'])} ({interval(row)})" for _, row in sure.iterrows()]
    return Markdown(
        f"**Of {len(table)} intervals {len(sure)} leave zero"
        + (f": {'; '.join(said)}" if said else "")
        + f".** After Holm's correction {int((table['p_holm'] < 0.05).sum())} do."
    )


def regret_title(means: pd.DataFrame) -> str:
    """The adviser's regret beside the best fixed choice's, on the last stream."""
    stream = means["panel"].iloc[-1]
    regret = means[means["panel"] == stream].set_index("label")["points"]
    fixed = regret.drop("the adviser")
    return (
        f"On {stream}, the adviser loses {regret['the adviser']:.1f} points to hindsight, "
        f"always {fixed.idxmin()} {fixed.min():.1f}"
    )


def regret_sentence(means: pd.DataFrame) -> Markdown:
    """On each stream the adviser's regret and the best fixed choice's, with intervals."""
    said = []
    for stream, part in means.groupby("panel", sort=False):
        rows = part.set_index("label").loc[["the adviser", *part["label"][part["label"] != "the adviser"][:1]]]
        ends = [f"{name} {row['points']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" for name, row in rows.iterrows()]
        said.append(f"{stream}: {', always '.join(ends)}")
    return Markdown(f"**Points below the best in hindsight, mean over tasks and budgets; {'; '.join(said)}.**")


def stream_title(name: str, gain: Estimate) -> str:
    """By how much pruned networks lower the front over all events, and whether that is sure."""
    verb = "lower" if gain.low > 0 else "are not sure to lower"
    return f"On {name}, pruned networks {verb} the front of error and compute ({points(-gain.value)} points)"


def over_the_stream_sentence(tables: dict[str, pd.DataFrame], gain: Estimate) -> Markdown:
    """What pruned networks lower the front by, how far apart the ends of each front are, and what is there."""
    said = [
        f"Mean over the range of compute, the front of all events is {gain.value:.1f} points [{gain.low:+.1f}, "
        f"{gain.high:+.1f}] lower with pruned networks than without"
    ]
    for name, table in tables.items():
        front = table[table["on_front"]].sort_values("flops")
        first, last = front.iloc[0], front.iloc[-1]
        said.append(
            f"{name}: from {first['error']:.1f} % of error for {short(first['flops'])}FLOPs ({first['family']}) to "
            f"{last['error']:.1f} % for {short(last['flops'])}FLOPs ({last['family']})"
        )
    return Markdown(f"**{'. '.join(said)}.**")


def networks_title(tables: dict[str, pd.DataFrame]) -> str:
    """How many of the networks on each front are pruned."""
    said = []
    for name, table in tables.items():
        front = table[table["on_front"]]
        said.append(f"{int((front['ratio'] > 0).sum())} of {len(front)} ({name})")
    return f"Of the networks on the front {', '.join(said)} are pruned"


def networks_sentence(tables: dict[str, pd.DataFrame]) -> Markdown:
    """For each stream the last network of the front beside the dense one."""
    said = []
    for name, table in tables.items():
        front = table[table["on_front"]].sort_values("forward_macs")
        last, dense = front.iloc[-1], table[table["origin"] == "dense"].iloc[0]
        said.append(
            f"{name}: {last['label']} reaches {100 - last['error']:.1f} % with {last['forward_macs'] / 1e6:.0f} "
            f"million MACs an image, dense {100 - dense['error']:.1f} % with {dense['forward_macs'] / 1e6:.0f} million"
        )
    return Markdown(
        f"**{'. '.join(said)}.** The front is that in hindsight, of mean accuracies without their intervals."
    )


def first_by_size(table: pd.DataFrame) -> pd.DataFrame:
    """The first network and learner of `tables.by_task_size`: a row per size of the task, a column per budget."""
    best = table.loc[table.groupby(["images", "budget"])["accuracy"].idxmax()]
    images = best["images"].map(images_said)
    shown = best.assign(images=pd.Categorical(images, images.unique()), first=best["label"])
    return shown.pivot(index="images", columns="budget", values="first")


def task_size_title(table: pd.DataFrame) -> str:
    """Which network and learner is first most often."""
    counts = first_by_size(table).stack().value_counts()
    return f"First in {counts.iloc[0]} of {counts.sum()} sizes and budgets: {counts.index[0]}"


def task_size_sentence(table: pd.DataFrame) -> Markdown:
    """Who is first on the smallest and on the whole tasks, at the largest budget."""
    first, largest = first_by_size(table), table["budget"].max()
    return Markdown(
        f"**With {budget_said(largest)} dense images, {first[largest].iloc[0]} is first where a task has "
        f"{first.index[0]} training images, and {first[largest].iloc[-1]} where it has all of them.**"
    )


def passes_sentence(table: pd.DataFrame, by_compute: float, by_passes: float) -> Markdown:
    """What either explains, and what is left of the spread between networks."""
    left = table["error"].max() - table["error"].min()
    return Markdown(
        f"**Over {table['arm'].nunique()} networks and {table['budget'].nunique()} budgets errors span {left:.0f} "
        f"points. Compute explains {by_compute:.0%} of their variance, image passes {by_passes:.0%}.**"
    )


def rates_sentence(rule: pd.DataFrame) -> Markdown:
    """The committed rates, and what they lose where they lose most."""
    lost = 100 * (rule["error_dev"] - rule["best"])
    at = rule.loc[lost.idxmax()]
    return Markdown(
        f"**The committed pair trains the body at {at['body']:g} and the head at {at['head']:g}. It loses "
        f"{lost.max():.1f} points of dev error at most, with {at['ratio']:.0%} removed and a budget of "
        f"{budget_said(at['budget'])} dense images.**"
    )


def time_title(training: pd.DataFrame) -> str:
    """What the smallest pruned network saves in MACs and in time: measured, so that it differs between machines."""
    row = training.loc[training.loc[training["family"] == "pruned", "share_of_macs"].idxmin()]
    return f"{row['share_of_macs']:.0%} of the MACs take {row['share_of_time']:.0%} of the time ({row['network']})"


def time_sentence(training: pd.DataFrame) -> Markdown:
    """The MACs that are left, which are the same everywhere."""
    said = [f"{row['network']} {row['share_of_macs']:.0%}" for _, row in training.iterrows()]
    return Markdown(f"**A training step has of the dense network's MACs: {', '.join(said)}.**")


def stream_sentence(tasks: pd.DataFrame) -> Markdown:
    """How many tasks, domains, years and images there are, and how far colours and pixels get."""
    images = tasks[["train", "dev", "test"]].to_numpy().sum()
    single = tasks[(tasks["kind"] == "classification") & tasks["colour"].notna()]
    said = (
        f"{len(tasks)} tasks of {tasks['domain'].nunique()} domains, {tasks['year'].min()} to {tasks['year'].max()}, "
        f"{(tasks['kind'] == 'multi-label').sum()} of them multi-label; {images} images"
    )
    if len(single):  # tasks that have cards
        ends = [f"{single[by].min():.0%} to {single[by].max():.0%}" for by in ("colour", "pixels")]
        said += f". Colours alone tell {ends[0]} of the test images, pixels {ends[1]}"
    return Markdown(f"**{said}.**")


def fidelity_title(table: pd.DataFrame) -> str:
    """What a repair is worth on the first network, where half is removed or nearest to that."""
    at, _ = _near_half(table)
    none, best = at.loc[at["name"] == "none", "fidelity"].iloc[0], at["fidelity"].max()
    return f"Without a repair little survives: {none:.1f}; with the best, {best:.1f} of the representation does"


def fidelity_sentence(table: pd.DataFrame) -> Markdown:
    """The same with what it is of."""
    at, ratio = _near_half(table)
    best, backbone = at.loc[at["fidelity"].idxmax(), "name"], at["backbone"].iloc[0]
    return Markdown(
        f"**With {ratio:.0%} of the channels of {backbone} removed, the cosine to the dense representation is "
        f"{at.loc[at['name'] == 'none', 'fidelity'].iloc[0]:.1f} without a repair and {at['fidelity'].max():.1f} "
        f"with {best}.**"
    )


def _near_half(table: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    ratio = min(table["ratio"].unique(), key=lambda share: abs(share - 0.5))
    first = table["backbone"] == table["backbone"].iloc[0]
    return table[first & (table["ratio"] == ratio) & (table["varied"] == "repair")], ratio
