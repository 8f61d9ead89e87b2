"""What the report says, section by section, for a reader who was not there."""

from tools.comparison import examples, figures
from tools.comparison.gather import metrics_of, problems
from tools.comparison.page import bullets, facts, figure, listed, page, paragraph, row, table, text
from tools.comparison.results import GAIN, LOSS, NONE, WITHIN, Row, table_heads, table_rows

MEANINGS = {
    "AP": "average precision, the mean over IoU thresholds from 0.50 to 0.95",
    "AP50": "average precision at IoU 0.50: right class, roughly right box",
    "AP75": "average precision at IoU 0.75: a tight box is needed",
    "APs": "AP of small objects, below 32 × 32 pixels of area",
    "APm": "AP of medium objects",
    "APl": "AP of large objects, above 96 × 96 pixels of area",
    "top1": "share of images whose best-scored class is right",
    "top5": "share of images whose class is among the five best-scored",
    "class_mean": "mean over classes of the share of their images that are right",
}
LITTLE = 5.0  # percent, of the first metric: below it the page warns
ALIKE = {  # of an arm and its host: how the page says that they agree in it, and what it is
    "train_sets": ("on the same images", "training set"),
    "iterations": ("for as many steps", "training steps"),
    "batch_size": ("with as many images a step", "images a step"),
}
MANY_CLASSES = 30  # from which their table scrolls
MEMORY = {"process": "resident memory of the largest process", "GPU": "most that PyTorch had allocated on the GPU"}
COST_FORMS = {
    "seconds": lambda v: f"{v:,.1f}",
    "seconds_per_step": lambda v: f"{v:.3f}",
    "peak_memory_mib": lambda v: f"{v:,.0f}",
    "inference_parameters": lambda v: f"{v / 1e6:.3f}",
}


def render(data: dict, found: dict) -> str:
    """The whole page. data: of gather; found: of gather_examples."""
    sections = {
        "What was compared": setup(data),
        "Results": results(data),
        "Differences": differences(data),
        "Classes": classes(data),
        "Learning curves": curves(data),
        "Time and memory": costs(data),
        "Example detections": detections(data, found),
        "How to read this": notes(data),
    }
    return page(data["title"], lead(data), sections)


def _ordered(data: dict) -> list[list[str]]:
    """Arms by group: a host and what is compared with it; an arm of two groups stands in the first."""
    groups, seen = [], set()
    for host, methods in data["groups"].items():
        groups.append([n for n in [host, *methods] if n not in seen])
        seen.update(groups[-1])
    return [g for g in groups if g] + [[n] for n in data["arms"] if n not in seen]


# ---------------------------------------------------------------- at the top
def lead(data: dict) -> str:
    """The outcome in one sentence, and what it does not say."""
    content = paragraph(_outcome(data), "lead")
    if len(data["seeds"]) == 1:
        content += paragraph(
            "<b>One seed.</b> Every arm was trained once. How much a result moves from seed to seed is not known here, "
            "so no difference on this page can be told from chance. <code>--seeds 0 1 2</code> says more.",
            "notice",
        )
    best = max(v for runs in metrics_of(data).values() for run in runs.values() for v in [run[data["metrics"][0]]])
    if best < LITTLE:
        content += paragraph(
            f"<b>Little was learned.</b> No run reaches {text(data['metrics'][0])} {LITTLE:.0f}: the detectors are at "
            "the beginning of their training, where differences say little about its end.",
            "notice",
        )
    if unlike := _unlike(data):
        told = "<b>Not trained alike.</b> A difference to the host may come from that: "
        content += f'<div class="notice">{told}{bullets(map(text, unlike))}</div>\n'
    if failed := problems(data):
        missing = f"<b>Not everything is here.</b> Missing: {bullets(map(text, failed))}"
        content += f'<div class="notice">{missing}</div>\n'
    return content


def _outcome(data: dict) -> str:
    if not data["differences"]:
        return "One model; there is nothing to compare it with."
    metric = data["metrics"][0]
    groups: dict[str, list[str]] = {}
    for name, by_metric in data["differences"].items():
        d = by_metric.get(metric)
        sign = NONE if d is None else d["mark"] or ("up" if d["mean"] > 0 else "down" if d["mean"] < 0 else "equal")
        told = "" if d is None else f" ({d['mean']:+.1f})"
        groups.setdefault(sign, []).append(f"{name}{told}")
    words = {
        GAIN: "rises by more than its spread over the seeds with",
        "up": "is higher than the host's with",
        WITHIN: "differs by no more than its spread over the seeds with",
        "equal": "equals the host's with",
        LOSS: "falls by more than its spread over the seeds with",
        "down": "is lower than the host's with",
        NONE: "cannot be compared for",
    }
    told = "; it ".join(f"{words[sign]} {listed(groups[sign])}" for sign in words if sign in groups)
    count = len(data["differences"])
    many = f"{count} methods, each" if count > 1 else "One method,"
    alike = [words for key, (words, _) in ALIKE.items() if _equal(list(_pairs(data, key).values()))]
    return (
        f"{many} compared with its host{', trained ' + ', '.join(alike) if alike else ''}. {text(metric)} (in percent, "
        f"higher is better; differences in percentage points) {told}."
    )


def _pairs(data: dict, key: str) -> dict[str, tuple]:
    """{arm: (its value, its host's)} of a budget, for arms that have runs in common with their host."""
    arms, compared = data["arms"], [n for n, d in data["differences"].items() if any(d.values())]
    return {n: (arms[n][key], arms[data["hosts"][n]][key]) for n in compared}


def _equal(pairs: list[tuple]) -> bool:
    return bool(pairs) and all(ours == host is not None for ours, host in pairs)


def _unlike(data: dict) -> list[str]:
    """In what arms are known to differ from their hosts, beside the config."""
    return [
        f"{what} of {name}: {_told(ours)}; of its host {data['hosts'][name]}: {_told(host)}"
        for key, (_, what) in ALIKE.items()
        for name, (ours, host) in _pairs(data, key).items()
        if None not in (ours, host) and ours != host
    ]


def _told(value: int | list[str]) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:,}"


def setup(data: dict) -> str:
    bodies = []
    for names in _ordered(data):
        bodies.append("".join(_arm_row(name, data["arms"][name]) for name in names))
    left = [
        '<th scope="col" class="text">its host</th>',
        '<th scope="col" class="text">what it is, and its config</th>',
    ]
    heads = ["arm", *left, "training steps", "images a step"]
    pairs = {"data": _data(data["data"]), "seeds": ", ".join(map(str, data["seeds"]))}
    for i, machine in enumerate(data["machines"] or [{}]):
        number = f" {i + 1}" if len(data["machines"]) > 1 else ""
        versions = ", ".join(f"{k} {v}" for k, v in machine.items() if k not in ("cpu", "gpu", "engine"))
        where = f"{machine['cpu']}; GPU: {machine['gpu']}" if machine else "not recorded"
        pairs[f"machine{number}"] = text(where)
        pairs[f"versions{number}"] = text(f"{machine['engine']}, {versions}" if machine else "not recorded")
    pairs["trained"] = text(" to ".join(dict.fromkeys(data["trained"])) or "not recorded")
    pairs["report written"] = text(data["written"].replace("T", " "))
    return (
        paragraph("An <em>arm</em> is one config. Its <em>host</em> is the arm that it is compared with.")
        + figure(table(heads, bodies), "")
        + facts(pairs)
        + paragraph("The same again, from the repository's folder (finished runs are kept, interrupted ones go on):")
        + f"<pre>{text(data['command'])}</pre>\n"
    )


def _arm_row(name: str, arm: dict) -> str:
    config = ", ".join([arm["config"], *arm["overrides"]])
    cells = [
        f'<td class="text">{text(arm["host"] or NONE)}</td>',
        f'<td class="text">{text(arm["about"])}<small><code>{text(config)}</code></small></td>',
        NONE if arm["iterations"] is None else f"{arm['iterations']:,}",
        str(arm["batch_size"] or NONE),
    ]
    return row(text(name), cells)


def _data(data: dict) -> str:
    if "missing" in data:
        return text(f"not here any more: {data['missing']}")
    parts = []
    for what, verb in (("train", "trained on"), ("test", "evaluated on")):
        for s in data[what]:
            counts = ""
            if "images" in s:
                scales = ", ".join(f"{n:,} {k}" for k, n in s["scales"].items())
                counts = f": {s['images']:,} images, {s['objects']:,} objects ({scales})"
            parts.append(f"{verb} <code>{text(s['name'])}</code>{counts}")
    names = data["test"][0]["classes"] if data["test"] else []
    some = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return "; ".join(parts) + (f"; {len(names)} classes: {text(some)}" if names else "")


# ---------------------------------------------------------------- results
def results(data: dict) -> str:
    rows: dict[str, list[Row]] = {}
    for line in table_rows(metrics_of(data), data["hosts"], data["metrics"]):
        rows.setdefault(line.arm, []).append(line)
    bodies, columns = (
        [],
        len(data["metrics"]) + (len(data["seeds"]) > 1),
    )  # of one seed the last column says nothing new
    for names in _ordered(data):
        body = ""
        for line in (line for name in names for line in rows[name]):
            label = f"difference to {line.minus}" if line.minus else line.arm
            seeds = f'<td class="seeds">{text(line.cells[-1])}</td>'
            cells = [*map(text, line.cells[:-1]), seeds][:columns]
            body += row(text(label), cells, "difference" if line.minus else "result")
        bodies.append(body)
    heads = [text(h) for h in table_heads(data["metrics"])][: columns + 1]
    terms = {m: MEANINGS[m] for m in data["metrics"] if m in MEANINGS}
    return figure(table(heads, bodies), _results_caption(data)) + (facts(terms, "soft") if terms else "")


def _results_caption(data: dict) -> str:
    several = len(data["seeds"]) > 1
    caption = "In percent, higher is better"
    caption += ", mean ± sample standard deviation over the seeds. " if several else ", of the one seed. "
    caption += "Shaded rows: arm minus host in percentage points, paired by seed. "
    caption += (
        f"{GAIN} gain, {LOSS} loss: the mean difference is larger than its own spread; {WITHIN}: it is not."
        if several
        else "One seed: nothing can be said about the spread."
    )
    values = [v for runs in metrics_of(data).values() for r in runs.values() for v in r.values()]
    return caption + (f" {NONE}: the test set has no such object." if any(v != v for v in values) else "")


def differences(data: dict) -> str:
    compared = {n: d for n, d in data["differences"].items() if any(d.values())}
    if not compared:
        return paragraph("No arm has a finished run in common with its host.")
    panels = {
        metric: {f"{n} − {data['hosts'][n]}": d[metric] for n, d in compared.items()}
        for metric in data["metrics"]
        if any(d[metric] for d in compared.values())
    }
    first = data["metrics"][0]
    told = "; ".join(f"{n} {d[first]['mean']:+.2f}" for n, d in compared.items() if d[first])
    drawing = figures.draw_differences(panels, "percentage points")
    caption = "The table's shaded rows as a picture. A filled disc is a gain, an open square a loss."
    if len(data["seeds"]) > 1:
        caption += " Bars: sample standard deviation over the seeds; ticks below: single seeds."
    return figure(figures.to_svg(drawing, "differences", f"Differences of {first} to the hosts: {told}"), caption)


def classes(data: dict) -> str:
    tables = {n: {r["class"]: r for r in rows} for n, rows in data["classes"].items() if rows}
    if not tables:
        return paragraph("The evaluation gives no AP of each class, or there is one class only.")
    names = list(dict.fromkeys(c for rows in tables.values() for c in rows))
    limit = max((abs(r["change"]) for rows in tables.values() for r in rows.values()), default=0) or 1
    body = "".join(row(text(c), [_heat(rows.get(c), limit) for rows in tables.values()]) for c in names)
    gains = [f"{sum(r['change'] > 0 for r in rows.values())} of {len(rows)}" for rows in tables.values()]
    heads = ["class", *(f"{text(n)}<small>− {text(data['hosts'][n])}</small>" for n in tables)]
    caption = (
        "AP of each class: arm minus host, in percentage points, mean over the seeds. Small: from the host's AP to the "
        "arm's, in percent. Blue is a gain, orange a loss, and the stronger the colour the larger the change."
    )
    content = table(heads, [body, row("classes that gain", gains)])
    return figure(content, caption, tall=len(names) > MANY_CLASSES)


def _heat(change: dict | None, limit: float) -> str:
    if change is None:
        return NONE
    color = "gain" if change["change"] > 0 else "loss"
    strength = 0.5 * abs(change["change"]) / limit
    told = f"{change['change']:+.1f}" if abs(change["change"]) >= 0.05 else "0.0"
    return (
        f'<td class="heat" style="background:rgb(var(--{color}) / {strength:.2f})">{told}'
        f"<small>{change['before']:.1f} → {change['after']:.1f}</small></td>"
    )


# ---------------------------------------------------------------- training
def curves(data: dict) -> str:
    quality = f"{data['task']}/{data['metrics'][0]}"
    titles = {"total_loss": "total loss", quality: f"{data['metrics'][0]} (percent)"}
    content, once = "", False
    for i, (host, methods) in enumerate(data["groups"].items()):
        panels = {}
        for scalar in titles:
            arms = {n: [s[scalar] for s in data["curves"][n].values() if scalar in s] for n in [host, *methods]}
            arms = {n: seeds for n, seeds in arms.items() if seeds}
            points = max((len(iterations) for seeds in arms.values() for iterations, _ in seeds), default=0)
            once |= scalar == quality and points == 1
            if points > 1 or (points and scalar == "total_loss"):
                panels[scalar] = arms
        if not panels:
            continue
        ends = [
            f"{titles[s]}, " + ", ".join(f"{n} ends at {seeds[0][1][-1]:.3g}" for n, seeds in arms.items())
            for s, arms in panels.items()
        ]
        drawing = figures.draw_curves(panels, host, titles)
        content += f"<h3>{text(host)} and {listed(methods)}</h3>\n"
        content += figure(figures.to_svg(drawing, f"curves{i}", f"Learning curves: {'; '.join(ends)}"), "")
    if not content:
        return paragraph("The runs' metrics.json have no curves.")
    words = (
        "Left: the sum of all losses at each logged step. A method with losses of its own has a larger sum than its "
    )
    words += "host: compare the shapes, not the heights. Right: the result on the test set on the way. "
    words += "Results were measured at the end only; <code>--eval-period N</code> gives curves. " if once else ""
    words += "Thin lines are single seeds, the others their mean." if len(data["seeds"]) > 1 else ""
    return paragraph(words) + content


def costs(data: dict) -> str:
    bodies = []
    for names in _ordered(data):
        body = ""
        for name in names:
            cells = []
            for key, cost in data["costs"][name].items():
                ratio = f"<small>× {cost['ratio']:.2f} of {text(data['hosts'][name])}</small>" if cost["ratio"] else ""
                cells.append(NONE if cost["mean"] is None else COST_FORMS[key](cost["mean"]) + ratio)
            body += row(text(name), cells)
        bodies.append(body)
    runs = [run for arm in data["arms"].values() for run in arm["runs"].values()]
    memory = [MEMORY[kind] for kind in sorted({run["memory_of"] for run in runs if run.get("memory_of")})]
    caption = (
        "Means over the seeds; small: the ratio to the host. Whole run: wall time of train_net.py with its start, the "
        "training and all evaluations, every part of it where it was interrupted. One step: median time of a training "
        f"step, loading of images included. Peak memory: {' or '.join(memory) or 'not measured'}. Parameters: what "
        "inference needs, parts for training alone left out. "
    )
    if data["parallel"]:
        caption += f"Runs at a time: {', '.join(data['parallel'])}; threads of each: {', '.join(data['threads'])}. "
    caption += "Other work on the machine lengthens times and is not known here."
    heads = ["arm", "whole run (s)", "one step (s)", "peak memory (MiB)", "parameters (millions)"]
    return figure(table(heads, bodies), caption)


# ---------------------------------------------------------------- pictures
def detections(data: dict, found: dict) -> str:
    if not found["images"]:
        return paragraph("No examples.") + bullets(f"{text(n)}: {text(why)}" for n, why in found["missing"].items())
    rule = "each model's best-scored detections, as many as the image has annotated objects"
    if found["threshold"] is not None:
        rule = f"all detections with a score of at least {100 * found['threshold']:.0f}%"
    content = paragraph(
        f"{len(found['images'])} images of the test set, evenly spaced over it, the same for every arm; weights of the "
        f"first finished seed. Shown: {rule}. <b>Green, full line</b>: an object found, the class is right and the box "
        f"overlaps with IoU {examples.IOU} or more. <b>Orange, dashed line</b>: anything else. <b>Blue</b>: the "
        "annotation. A label is a class, then the model's score."
    )
    for host, methods in data["groups"].items():
        arms = [host, *methods]
        heads = ["annotated", *(f"{text(n)}{' (host)' if n == host else ''}" for n in arms)]
        rows = "".join(_example_row(found, i, arms) for i in range(len(found["images"])))
        content += f"<h3>{text(host)} and {listed(methods)}</h3>\n" + figure(table(heads, [rows], "examples"), "")
    return content


def _example_row(found: dict, i: int, arms: list[str]) -> str:
    file, truth = found["images"][i], found["truth"][i]
    objects = f"{truth.found} object{'' if truth.found == 1 else 's'}"
    cells = [_picture(truth.jpeg, f"{file}: {objects} annotated", f"{text(file)}, {objects}")]
    for name in arms:
        if name in found["missing"]:
            cells.append(f"<td><small>{text(found['missing'][name])}</small></td>")
            continue
        picture = found["arms"][name][i]
        told = f"{picture.found} of {truth.found} found, {picture.false} false"
        cells.append(_picture(picture.jpeg, f"{file}, detections of {name}: {told}", told))
    return f"<tr>{''.join(cells)}</tr>"


def _picture(jpeg: str, alt: str, caption: str) -> str:
    return f'<td><img src="{jpeg}" alt="{text(alt)}"><small>{caption}</small></td>'


def notes(data: dict) -> str:
    seeds = "With one seed there is no spread: a difference on this page may be chance, however large."
    if len(data["seeds"]) > 1:
        seeds = (
            f"{GAIN} and {LOSS} say that a mean difference is larger than its sample standard deviation over the "
            "seeds: a rule of thumb, no test of significance, and with two or three seeds a weak one."
        )
    return bullets(
        [
            "An arm is compared with its own host only: the same data, seed and settings but for what its config says. "
            "Arms of different hosts are different detectors; their numbers do not say which method is better.",
            "A seed fixes the initial weights and the order of the images. Differences are taken seed by seed, then "
            "averaged.",
            seeds,
            "A short training shows how fast a detector gets going, not where it ends.",
            "IoU, intersection over union, is the overlap of two boxes, from 0 to 1. AP asks for the right class and "
            "for enough of it.",
            "Every number is in <code>report.json</code> beside this file; each run's folder has its config.yaml, "
            "log.txt, metrics.json, weights and run.json.",
        ]
    )
