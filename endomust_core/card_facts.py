"""What the numbers of a model card say of the model's limits: worst domain, exposure, distance, drift; a sentence each.

A group is a data set as card.json has it; lengths in metres, shown in millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from endomust_core.evaluation_page import number
from endomust_core.evaluation_run import MODEL

FEW_PIXELS = 0.01  # share of all pixels below which nothing is said of a bin


def measured(card: Mapping) -> list[str]:
    """The sentences, of the data sets that can be concluded from, and of clips."""
    groups = conclusive(card)
    found = [
        *_worst_domain(groups),
        *_unseen(groups),
        *_beaten(groups),
        *_wander(groups),
        *_exposure(groups),
        *_fault(groups),
    ]
    found += [*_distance(groups), *_drift(groups), *_focal(groups), *_metres(card["model"], groups)]
    for clip in card["real"]:
        found += _clip_sentences(clip)
    return found


def conclusive(card: Mapping) -> list[Mapping]:
    """The data sets that are at hand and more than indicative."""
    return [group for group in card["groups"] if group["at_hand"] and not group["indicative"]]


def shown_name(group: Mapping) -> str:
    """The name of a data set, with what makes its row special."""
    marks = [mark for mark, key in (("zero-shot", "zero_shot"), ("indicative", "indicative")) if group[key]]
    return group["name"] + (f" ({', '.join(marks)})" if marks else "")


def abs_rel(group: Mapping) -> float:
    """AbsRel of the model."""
    return group["depth"][MODEL]["abs_rel"]["value"]


def best_guess(group: Mapping) -> tuple[str, float]:
    """The baseline with the least AbsRel, and that."""
    guesses = {name: scores["abs_rel"]["value"] for name, scores in group["depth"].items() if name != MODEL}
    name = min(guesses, key=guesses.get)
    return name, guesses[name]


def less_error(group: Mapping) -> float | None:
    """By how many percent the model errs less than the best baseline; None where that is perfect, on a flat truth."""
    guess = best_guess(group)[1]
    return 100 * (1 - abs_rel(group) / guess) if guess else None


def span(values: Sequence[float], digits: int) -> str:
    """`0.8 to 1.2`, or one number where they are the same."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _worst_domain(groups: Sequence[Mapping]) -> list[str]:
    if len(groups) < 2:
        return []
    ordered = sorted(groups, key=abs_rel)
    ends = (f"{shown_name(group)}, AbsRel {number(abs_rel(group))}" for group in (ordered[-1], ordered[0]))
    return [f"Worst domain: {next(ends)}; best: {next(ends)}."]


def _unseen(groups: Sequence[Mapping]) -> list[str]:
    means = {}
    for zero_shot in (False, True):
        values = [abs_rel(group) for group in groups if group["zero_shot"] is zero_shot]
        if not values:
            return []
        means[zero_shot] = sum(values) / len(values)
    change = 100 * (means[True] / means[False] - 1)
    words = f"{abs(change):.0f} % {'more' if change > 0 else 'less'}"
    return [
        f"On domains that training never saw AbsRel is {number(means[True])} on average, {words} than on those it saw "
        f"({number(means[False])})."
    ]


def _beaten(groups: Sequence[Mapping]) -> list[str]:
    found = []
    for group in groups:
        name, guess = best_guess(group)
        if abs_rel(group) >= guess:
            found.append(f"On {shown_name(group)} it is no better than a guess ({name}, AbsRel {number(guess)}).")
    return found


def _wander(groups: Sequence[Mapping]) -> list[str]:
    known = [group for group in groups if group["scale_std"]]
    if not known:
        return []
    worst = max(known, key=lambda group: group["scale_std"]["value"])
    return [
        f"Scale wanders most within sequences of {shown_name(worst)}: by "
        f"{number(worst['scale_std']['value'], 1, 100)} % from image to image (standard deviation)."
    ]


def _exposure(groups: Sequence[Mapping]) -> list[str]:
    """The brightness at which pixels of all data sets together are worst."""
    curves = [group["curves"]["brightness"] for group in groups if group["curves"]]
    if not curves:
        return []
    edges, pixels = curves[0]["edges"], [sum(counts) for counts in zip(*(c["pixels"] for c in curves), strict=True)]
    errors = [
        sum((curve["abs_rel"][place] or 0) * curve["pixels"][place] for curve in curves) / max(pixels[place], 1)
        for place in range(len(pixels))
    ]
    counted = [place for place, count in enumerate(pixels) if count >= FEW_PIXELS * sum(pixels)]
    worst, best = max(counted, key=errors.__getitem__), min(counted, key=errors.__getitem__)
    if worst == best:
        return []
    spans = [f"{edges[place]:.0f} to {edges[place + 1]:.0f}" for place in (worst, best)]
    return [
        f"Worst exposure: pixels of brightness {spans[0]} (of 255) have an AbsRel of {number(errors[worst])}, those of "
        f"{spans[1]} {number(errors[best])}."
    ]


def _fault(groups: Sequence[Mapping]) -> list[str]:
    """The fault of the image that costs most, by the factor on AbsRel."""
    costs = [
        (errors[fault] / errors["clean"], fault, group)
        for group in groups
        if (errors := group["faults"])
        for fault in errors
        if fault != "clean" and errors[fault] and errors["clean"]
    ]
    if not costs:
        return []
    factor, fault, group = max(costs, key=lambda cost: cost[0])
    before, after = (number(group["faults"][key]) for key in ("clean", fault))
    return [f"Worst fault: {fault} in {shown_name(group)} takes AbsRel from {before} to {after} (times {factor:.1f})."]


def _distance(groups: Sequence[Mapping]) -> list[str]:
    """The distance at which pixels of a data set are worst, of all data sets."""
    found = []
    for group in groups:
        curve = (group["curves"] or {}).get("distance")
        if not curve:
            continue
        pixels = curve["pixels"]
        for place, error in enumerate(curve["abs_rel"]):
            if error is not None and pixels[place] >= FEW_PIXELS * sum(pixels):
                low, high = (number(edge, 0, 1e3) for edge in curve["edges"][place : place + 2])
                found.append((error, f"{low} to {high} mm in {shown_name(group)}"))
    if not found:
        return []
    error, where = max(found)
    return [f"Worst distance: {where}, AbsRel {number(error)}."]


def _drift(groups: Sequence[Mapping]) -> list[str]:
    known = [group for group in groups if group["motion"].get("drift")]
    if not known:
        return []
    worst = max(known, key=lambda group: group["motion"]["drift"]["value"])
    return [
        f"The path of the pose network alone is worst in {shown_name(worst)}: off by "
        f"{number(worst['motion']['drift']['value'], 0, 100)} % of the length of the path."
    ]


def _focal(groups: Sequence[Mapping]) -> list[str]:
    known = [group for group in groups if group["intrinsics"]]
    if not known:
        return []
    worst = max(known, key=lambda group: sum(group["intrinsics"][:2]))
    error = sum(worst["intrinsics"][:2]) / 2
    return [f"The focal length that it guesses is worst in {shown_name(worst)}: {number(error, 0, 100)} % off."]


def _metres(model: Mapping, groups: Sequence[Mapping]) -> list[str]:
    if model["metric"] or not groups:
        return []
    ratios = [group["ratio"] for group in groups]
    return [f"Not metric: the factor from its metres to true ones is {span(ratios, 2)}, by data set."]


def _clip_sentences(clip: Mapping) -> list[str]:
    facts = clip["facts"]
    if facts is None or facts["scale_wander"] is None:
        return []
    return [f"On {clip['name']} the scale wanders by {number(facts['scale_wander'], 1, 100)} % from image to image."]
