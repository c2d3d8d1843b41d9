"""Data set x estimator → a table of depth scores, with trivial predictors beside it.

Median-scaled per image unless said otherwise.
"""

import numpy as np

from endomust_core.metrics import depth_metrics, mean_metrics, scale_ratio_std

RANGE = (1e-3, 0.3)  # depths scored [m]
COLUMNS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "a1", "scale_std", "images")


def constant_depth(rgb):
    """Every pixel equally far."""
    return np.ones(rgb.shape[:2], np.float32)


def centre_is_far(rgb):
    """Depth falls linearly from the middle of the image to 1/3 at its corners: what a tube looks like on average."""
    height, width = rgb.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (1 - (2 / 3) * np.hypot(x, y) / np.sqrt(2)).astype(np.float32)


def inverse_square_brightness(rgb):
    """A lamp at the camera lights as 1/z²: depth is light^(-1/2), light being the display value to the power 2.2."""
    luminance = rgb @ np.array((0.299, 0.587, 0.114), np.float32) / 255
    return np.maximum(luminance, 0.02) ** (-2.2 / 2)


BASELINES = {
    "constant": constant_depth,
    "centre is far": centre_is_far,
    "inverse-square brightness": inverse_square_brightness,
}


def evaluate(estimator, samples, scaling="median", progress=None):
    """Score the estimator and every baseline on the samples.

    Returns {predictor: {group: {abs_rel, sq_rel, rmse, rmse_log, a1, a2, a3, scale_std, images}}} with the group
    "all" last; lengths in metres. scaling: "median" or "none" (metric); baselines are always scaled.
    """

    def model(rgb):
        estimator.reset()  # every image is taken alone
        return estimator.estimate(rgb).depth

    predictors = {"model": model, **BASELINES}
    found, total = {name: {} for name in predictors}, len(samples)
    for number, sample in enumerate(samples, 1):
        for name, predict in predictors.items():
            way = scaling if name == "model" else "median"
            metrics = depth_metrics(predict(sample.rgb), np.nan_to_num(sample.depth), *RANGE, scaling=way)
            found[name].setdefault(sample.group, []).append(metrics)
        if progress:
            progress(number, total)
    return {name: _summary(groups) for name, groups in found.items()}


def _summary(groups):
    rows = dict(sorted(groups.items()))
    if len(rows) > 1:
        rows["all"] = [metrics for group in groups.values() for metrics in group]
    table = {}
    for group, images in rows.items():
        table[group] = {
            **mean_metrics(images),
            "scale_std": scale_ratio_std([image["ratio"] for image in images]),
            "images": len(images),
        }
    return table


def markdown(table):
    """The table of `evaluate` as Markdown, lengths in millimetres."""
    lines = [
        "| predictor | group | AbsRel | SqRel [mm] | RMSE [mm] | RMSElog | δ<1.25 | scale std | images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for predictor, groups in table.items():
        for group, row in groups.items():
            values = [1e3 * row[key] if key in ("sq_rel", "rmse") else row[key] for key in COLUMNS]
            cells = [f"{value:.3f}" for value in values[:-1]] + [str(values[-1])]
            lines.append(f"| {predictor} | {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
