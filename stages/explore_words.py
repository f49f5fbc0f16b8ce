"""What the page of a bank says in words, around the data of `pipeline.explore_data`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import explore_data
from pipeline.bank import Bank
from pipeline.bank_map import LEAST, NEIGHBOURS, Maps
from pipeline.bank_survey import LEAST_ROWS, Survey
from pipeline.explore_data import LISTED
from pipeline.features import records
from stages.console import counted, megabytes, plain_time
from stages.report_words import made_by, spoken_chart

LOOKS = 40  # labels that have a colour and a shape of their own
_CLASSES = 60  # in the table


def page(bank: Bank, survey: Survey) -> dict[str, Any]:
    """What the template names, but for the map and the pictures."""
    catalog = bank.catalog
    classes = explore_data.classes(catalog) if len(catalog) else []
    still = explore_data.still(survey)
    copies = explore_data.copies(catalog, survey.same)
    splits = sorted(set(catalog["split"]))
    usual = explore_data.over_time(survey)
    return {
        "title": f"{bank.path.name} – framebank explore",
        "name": bank.path.name,
        "lead": _lead(bank, survey),
        "made": _made(bank, survey),
        "classes": classes[:_CLASSES],
        "more_classes": _more(len(classes) - _CLASSES, "class", f"framebank describe {bank.path} --csv", "classes"),
        "most_videos": max((each["videos"] for each in classes), default=1),
        "class_words": counted(sum(bool(each["name"]) for each in classes), "class", "classes"),
        "labelled": any(each["name"] for each in classes),
        "splits": [] if splits == [""] else splits,
        "lengths": _lengths(explore_data.lengths(catalog)) if len(catalog) else None,
        "charts": {"usual": "No video has two rows." if usual is None else spoken_chart(usual)},
        "still": [each | _still(each) for each in still[:LISTED]],
        "still_words": _still_words(still),
        "copies": copies[:LISTED],
        "copies_words": _copies_words(copies),
        "failed": _failed(bank),
    }


def of_map(
    bank: Bank,
    survey: Survey,
    shown: Sequence[str],
    maps: Maps | None,
    near: Sequence[Sequence[Sequence[Any]]],
    pictures: Mapping[int, str],
    gaps: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template names of the map, and what its script reads.

    Args:
        bank, survey: of which it is.
        shown, maps, near: as `pipeline.explore_data.mapped` gives them.
        pictures, gaps: as `pipeline.explore_data.pictures` does.
    """
    rows = {row["id"]: row for row in records(bank.catalog[bank.catalog["id"].isin(set(shown))])}
    counts = bank.catalog.loc[bank.catalog["id"].isin(set(shown)), "label"].value_counts()
    labels = sorted((label for label in counts.index if label), key=lambda label: (-counts[label], label))
    named = min(len(labels), LOOKS)
    code = {label: place for place, label in enumerate(labels)}
    key = [(place, label, int(counts[label])) for place, label in enumerate(labels[:named])]
    if len(labels) > named:
        key.append((named, "other labels", int(sum(counts[label] for label in labels[named:]))))
    if labels and "" in counts.index:
        key.append((-1, "no label", int(counts[""])))
    charts: dict[str, Any] = {}
    if maps is not None:
        pca, tsne = (
            (f"Principal component {place + 1} ({share:.0%})" for place, share in enumerate(maps.shares)),
            "t-SNE",
        )
        charts = {
            "pca": _drawn("PCA", maps.pca, *pca),
            "tsne": _drawn("t-SNE", maps.tsne, f"{tsne}, first axis", f"{tsne}, second axis"),
        }
        for each in charts.values():
            each["alt"] = _alt(each["title"], len(shown), labels)
    videos = [
        {
            "id": video,
            "label": code.get(rows[video]["label"], -1),
            "facts": _facts(rows[video]),
            "near": near[place],
            "course": explore_data.course(survey.videos[video]),
        }
        for place, video in enumerate(shown)
    ]
    content = {
        "listed": list(shown),
        "listed_set": set(shown),
        "maps": charts,
        "key": key,
        "map_words": _map_words(bank, survey, shown, pictures, gaps, bool(labels), maps is not None),
        "no_map": _no_map(len(shown)),
    }
    data = {"videos": videos, "labels": labels, "named": named, "maps": charts or None, "pictures": dict(pictures)}
    return content, data


def _drawn(title: str, points: Any, x: str, y: str) -> dict[str, Any]:
    """A map, its numbers short: only where points lie to each other matters."""
    size = float(abs(points).max()) or 1.0
    return {"title": title, "points": (points / size).round(4).tolist(), "x": x, "y": y}


def _alt(title: str, count: int, labels: Sequence[str]) -> str:
    coloured = f", coloured by {counted(len(labels), 'label')}: {', '.join(labels[:8])}" if labels else ""
    more = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return f"{title} of {counted(count, 'video')}{coloured}{more}. The arrow keys go from video to video."


def _lead(bank: Bank, survey: Survey) -> str:
    catalog = bank.catalog
    seconds = catalog["duration"].sum()
    parts = [counted(len(catalog), "video")]
    if len(catalog):
        labels = catalog["label"].nunique() - int((catalog["label"] == "").any())
        parts += [counted(int(catalog["rows"].sum()), "row"), *([plain_time(seconds)] if seconds > 0 else [])]
        parts += [counted(labels, "class", "classes") if labels else "no labels"]
    failed = [counted(len(bank.failures), "failure")] if len(bank.failures) else []
    return " · ".join([*parts, counted(survey.features, "feature") + " a row", *failed])


def _made(bank: Bank, survey: Survey) -> list[tuple[str, str]]:
    pairs = [("Bank", str(bank.path.resolve())), ("On disk", megabytes(bank.nbytes)), *made_by(bank.config)]
    pairs += [("Made", f"{bank.created[:10]}, from {bank.config['data']}")]
    catalog = bank.catalog
    partial, mended = int((catalog["partial"] != "").sum()), int((catalog["frames_corrupt"] > 0).sum())
    if partial:
        pairs.append(("Partial", f"{counted(partial, 'video')} decoded only in part"))
    if mended:
        pairs.append(("Corrupt", f"{counted(mended, 'video')} with frames that the decoder marked corrupt"))
    if survey.constant:
        said = f"{survey.constant:,} of {survey.features:,} have one value in all rows: they tell nothing"
        pairs.append(("Dead features", said))
    return pairs


def _more(number: int, noun: str, command: str, plural: str | None = None) -> str:
    return f"And {counted(number, noun, plural)} more: {command}" if number > 0 else ""


def _lengths(found: Mapping[str, Any]) -> dict[str, Any]:
    unit = "s" if found["unit"] == "seconds" else "rows"
    most = max(count for _, _, count in found["bins"])
    low, median, high = (f"{found[name]:,.4g}" if unit == "s" else f"{found[name]:,.0f}" for name in _RANGE)
    said = f"All {low} {unit}." if low == high else f"From {low} to {high} {unit}, half of them below {median}."
    rows = [
        {"name": _bin(start, stop, unit), "videos": count, "share": count / most}
        for start, stop, count in found["bins"]
    ]
    return {"words": said, "head": "Seconds" if unit == "s" else "Rows", "rows": rows}


_RANGE = ("least", "median", "most")


def _bin(start: float, stop: float, unit: str) -> str:
    """ "2 to 2.5"; of whole numbers both are meant: "20 to 29"."""
    if unit == "rows":
        return f"{start:,.0f}" if stop - start == 1 else f"{start:,.0f} to {stop - 1:,.0f}"
    return f"{start:,.4g} to {stop:,.4g}"


def _facts(row: Mapping[str, Any]) -> str:
    parts = [row["label"] or "no label", *(f"{name} {row[name]}" for name in ("split", "group") if row[name])]
    parts.append(counted(row["rows"], "row"))
    if row["duration"] > 0:
        parts.append(plain_time(row["duration"]))
    return " · ".join(parts)


def _map_words(
    bank: Bank,
    survey: Survey,
    shown: Sequence[str],
    pictures: Mapping[int, str],
    gaps: Mapping[str, str],
    labelled: bool,
    drawn: bool,
) -> list[str]:
    """What is shown, and what is not."""
    lines = []
    if drawn:
        lines.append(
            "Each point is a video: the mean of its rows, so that the order of frames does not count. Near points look "
            f"alike to the network{'; colour and shape say the label' if labelled else ''}. PCA keeps distances as far "
            "as two axes can; t-SNE keeps neighbours together, and its distances between groups mean little."
        )
    if len(shown) > 1:
        lines.append(
            f"The {min(NEIGHBOURS, len(shown) - 1)} nearest neighbours are those at the smallest angle, seen from the "
            "mean of all videos; 1 is the same direction."
        )
    with_rows = len(survey.videos)
    if with_rows > explore_data.MAPPED:
        lines.append(f"A sample: {len(shown):,} of {with_rows:,} videos, drawn with a fixed seed. All else is of all.")
    empty = len(bank.catalog) - with_rows
    if empty:
        lines.append(f"Without a row, and so not here: {counted(empty, 'video')}.")
    if lost := sum(not (each.mean is not None) for video, each in survey.videos.items() if video in set(shown)):
        lines.append(f"Without a finite row, and so not here: {counted(lost, 'video')}.")
    if len(pictures) < len(shown):
        why = f"; {counted(len(gaps), 'video')} cannot be shown, e.g. {next(iter(gaps.items()))[0]}: " if gaps else ""
        why += next(iter(gaps.values())) if gaps else ", as many as fit in a page"
        lines.append(f"Pictures: {len(pictures):,} of {counted(len(shown), 'video')}{why}.")
    return lines


def _no_map(count: int) -> str:
    if count == 0:
        return "No video has a row that could be shown."
    if count < LEAST:
        return f"{counted(count, 'video')}: a map needs {LEAST} or more."
    return "All videos have the same mean features, so there is no map."


def _still(each: Mapping[str, Any]) -> dict[str, Any]:
    unit = "s" if each["unit"] == "Seconds" else ""
    start, stop = (f"{moment:.1f}" if unit else f"{moment:.0f}" for moment in each["longest"])
    longest = f"{start} to {stop} {unit}" if unit else f"rows {start} to {stop}"
    names = {"zero": "all zero"}
    what = ", ".join(names.get(kind, kind) for kind in each["kinds"])
    return {
        "longest_words": f"{longest} ({counted(each['most'], 'row')})",
        "what": what,
        "share": each["still"] / each["rows"],
        "where": f"{what}; the longest: {longest}",
    }


def _still_words(still: Sequence[Mapping[str, Any]]) -> str:
    meant = (
        f"Frozen: {LEAST_ROWS} rows or more without a change (of more than two thousandths). Dead: rows whose features "
        "are all zero, or not finite."
    )
    if not still:
        return f"No video has any. {meant}"
    shown = f" The {LISTED} with the longest are listed." if len(still) > LISTED else " The longest come first."
    return f"{counted(len(still), 'video has', 'videos have')} such stretches. {meant}{shown}"


def _copies_words(copies: Sequence[Mapping[str, Any]]) -> str:
    meant = (
        "identical features, to the last bit. (On a GPU copies may come out a hair apart: neighbours at 1.000 show "
        "them.)"
    )
    if not copies:
        return f"No two videos have {meant}"
    videos = sum(len(each["videos"]) for each in copies)
    several = sum(each["splits_differ"] for each in copies)
    leak = (
        f" {counted(several, 'group lies', 'groups lie')} in several splits: what is tested was trained on."
        if several
        else ""
    )
    shown = f" The first {LISTED} are listed." if len(copies) > LISTED else ""
    return f"{counted(videos, 'video')} in {counted(len(copies), 'group')} of {meant}{leak}{shown}"


def _failed(bank: Bank) -> dict[str, Any]:
    found = explore_data.failures(bank)
    said = "Every video that was tried is in the bank."
    if found["count"]:
        said = f"{counted(found['count'], 'video')} could not be banked."
        if found["count"] > LISTED:
            said += f" The first {LISTED} are listed; all: framebank describe {bank.path} --failures"
    return found | {"words": said}
