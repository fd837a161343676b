"""The page of a card: one file, with its pictures inside, that needs no script and asks no other host."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from msae.cards import faults
from msae.cards.state import Card, Row
from msae.cards.training import MOST
from msae.cards.verdict import MEASURES, best, gain, interval_of, number, spelled, verdict
from msae.whole import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "reconstruction": "Reconstruction",
    "detection": "Detection",
    "forecast": "Forecasts",
    "features": "Features",
    "augmentation": "Augmentation",
}
COLUMNS = {
    "reconstruction": {"latent": "latent", "steps": "steps"},
    "detection": {"found": "anomalies found", "false_alarms": "false alarms in 1,000 steps"},
    "forecast": {},
    "features": {"features": "features"},
    "augmentation": {},
}
"""Further columns of a use."""
UNITS = {
    "reconstruction": "MSE in normalized units",
    "detection": "average precision of the steps",
    "forecast": "MSE in squared deviations",
    "features": "accuracy",
    "augmentation": "accuracy",
}
APPLY = {
    "reconstruction": "reconstruct ckpt={ckpt} data.path=new.csv",
    "latents": "embed ckpt={ckpt} out=latents.csv",
    "detection": "detect ckpt={ckpt} data.path=new.csv out=alarms.csv",
    "forecast": "forecast ckpt={ckpt} out=forecast.csv horizons=[{horizon}]",
}
"""How the best model of a use is used, as a command; `latents` is that of data sets without files."""
METHOD = (
    "Rows are chosen by the validation split and told on the test split. n is the number of seeds, ± their standard "
    "deviation. A gain is that over the best simple baseline (grey), paired over parts of the test, with a 95 % "
    "t-interval; a row is recommended where the interval is above 0. The interval says how certain the gain is on this "
    "test split, not on data of another time. Several rows are compared, so one of them may look good by chance."
)


def sentences(card: Card, uses: list[str]) -> list[str]:
    """What to use for what: a plain sentence for each use."""
    found = []
    for use in uses:
        known = card.content["uses"].get(use)
        if known is None:
            needs = card.content.get("lacking", {}).get(use)
            reason = f"it needs {needs}" if needs else "it is not among uses="
            found.append(f"{TITLES[use]}: not compared ({reason}).")
        elif "note" in known and not card.rows(use):
            found.append(f"{TITLES[use]}: left out: {known['note']}.")
        else:
            found.append(f"{TITLES[use]}: {verdict(use, card.rows(use))['sentence']}.")
    return found


def write(card: Card, uses: list[str]) -> None:
    """Write card.html, and the verdicts into card.json."""
    there = [use for use in uses if use in card.content["uses"]]
    for use in there:
        card.of(use)["verdict"] = verdict(use, card.rows(use))
    card.content["sentences"] = sentences(card, uses)
    card.keep(timed=False)
    facts = card.content["facts"]
    channels, length = facts["shape"]
    train, val, test = facts["windows"]
    about = (
        f"{train:,} windows for training, {val:,} for validation and {test:,} for the test; {channels} "
        f"channel{'s' * (channels > 1)}, {length} steps a window. Computed in {card.content['seconds']:.0f} s of a "
        f"budget of {card.budget:.0f} s, {card.threads} thread{'s' * (card.threads > 1)}, msae {version('msae')}: "
        f"{' '.join(facts['data'])}"
    )
    items = [f"<li>{bold(text)}</li>" for text in card.content["sentences"]]
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"What to use on {name_of(facts['data'])}"),
        about=escape(about),
        sentences="\n".join(items),
        sections="\n".join(section(card, use) for use in there),
        method=escape(METHOD),
    )
    write_text(card.folder / "card.html", page)


def name_of(given: list[str]) -> str:
    """The name of data by the overrides that choose them.

    Examples:
        >>> name_of(["data=series", "data.path=plant/readings.csv"]), name_of(["data=digits"])
        ('readings.csv', 'digits')
    """
    values = dict(text.lstrip("+").split("=", 1) for text in given if "=" in text)
    return values.get("data.name") or Path(values.get("data.path", values["data"]).strip("'\"")).name


def bold(text: str) -> str:
    """A sentence whose first word, the use, is bold."""
    use, _, rest = text.partition(":")
    return f"<strong>{escape(use)}:</strong>{escape(rest)}"


def section(card: Card, use: str) -> str:
    """The section of a use."""
    known, rows = card.of(use), card.rows(use)
    found = [f'<h2 id="{use}">{TITLES[use]}</h2>']
    found += [f"<p>{escape(told(known, use))}</p>"]
    if rows:
        found += [table(use, rows, known), picture(bars(use, rows, known), f"{TITLES[use]}: {UNITS[use]}")]
    notes = [f"{row['name']}: {row['note']}" for row in known["rows"] if row.get("note")]
    notes += [known["note"]] if "note" in known else []
    if notes:
        found.append(f'<p class="small">{escape("; ".join(notes))}.</p>')
    if use == "detection" and rows:
        found.append(of_kinds(rows))
    shown = card.folder / f"{use}.png"
    if shown.is_file():
        found.append(image(shown.read_bytes(), f"An example of {use}"))
    if (card.folder / f"{use}.ckpt").is_file() and use in APPLY:
        files = any(text.startswith("data.path=") for text in card.content["facts"]["data"])
        line = APPLY[use if files else "latents"].format(ckpt=card.folder / f"{use}.ckpt", horizon=known.get("horizon"))
        row = best(use, [row for row in rows if "checkpoint" in row])
        if row is not None and row["name"] == "error (nested)":
            line += f" reference=null threshold={row['threshold']:.4g}"
        found.append(f"<p>To use the best model:</p><pre>python -m msae.{escape(line)}</pre>")
    commands = dict.fromkeys(row["command"] for row in rows)
    names = {command: [row["name"] for row in rows if row["command"] == command] for command in commands}
    if rows:
        lines = [f"# {', '.join(names[command])}\n{command}" for command in commands]
        found.append(f"<p>The commands that reproduce the rows:</p><pre>{escape(chr(10).join(lines))}</pre>")
    return "\n".join(found)


def told(known: dict[str, Any], use: str) -> str:
    """What was compared, and what was cut."""
    texts = {
        "reconstruction": f"Windows are coded by about {known.get('latent')} values and decoded again.",
        "detection": f"{known.get('repeats')} faults of each kind, put into stretches of "
        + ("the validation part; in the test part your labels." if known.get("labelled") else "each part."),
        "forecast": f"The next {known.get('horizon')} steps of each channel, from a window before them.",
        "features": "A ridge classifier, chosen by four-fold cross-validation on training and validation samples.",
        "augmentation": "The same classifier of raw values, with and without a new sample for each old one.",
    }
    found = [texts[use]]
    if "steps" in known:
        steps = sorted(set(known["steps"].values()))
        numbers = f"{steps[0]:,}" + f" to {steps[-1]:,}" * (len(steps) > 1)
        found.append(f"Models are trained for {numbers} steps, as many as the budget allows, at most {MOST:,}.")
    if "samples" in known:
        found.append("{:,} samples for training and {:,} for the test.".format(*known["samples"]))
    return " ".join(found)


def table(use: str, rows: list[Row], known: dict[str, Any]) -> str:
    """The rows as a table."""
    more, base = MEASURES[use][1], best(use, [row for row in rows if row["simple"]])
    taken = known["verdict"].get("take")
    head = ["", "n", "validation", "test", "gain (95 % interval)", *COLUMNS[use].values(), "seconds"]
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        deviation = float(np.std(row["test"], ddof=1)) if len(row["test"]) > 1 else 0.0
        spread = f" ± {deviation if deviation > 1e-9 else 0:.2g}" * (len(row["test"]) > 1)
        against = ""
        if base is not None and row is not base:
            middle, low, high = gain(use, row, base)
            against = f"{spelled(middle, more)} ({interval_of(low, high, more)})"
        further = [extra(row, key) for key in COLUMNS[use]]
        cells = [
            row["name"],
            len(row["test"]),
            number(row["val"], more),
            number(float(np.mean(row["test"])), more) + spread,
        ]
        cells += [against, *further, f"{row['seconds']:.0f}"]
        kind = " ".join(["taken"] * (row["name"] == taken) + ["simple"] * row["simple"])
        lines.append(f'<tr class="{kind}">' + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def extra(row: Row, key: str) -> str:
    """A further cell."""
    if key == "found":
        return f"{row['found']:.3g} of {row['of']}"
    value = row.get(key)
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else f"{value}"


def of_kinds(rows: list[Row]) -> str:
    """The average precision of each kind of fault, and the sizes of the faults."""
    head = "".join(f"<th>{escape(text)}</th>" for text in ("fault", *(row["name"] for row in rows), "size"))
    lines = [f"<tr>{head}</tr>"]
    for kind in rows[0]["kinds"]:
        size = faults.KINDS.get(kind, "the anomalies that you labelled")
        cells = "".join(f"<td>{row['kinds'][kind]:.2f}</td>" for row in rows)
        lines.append(f'<tr><td>{escape(kind)}</td>{cells}<td class="text">{escape(size)}</td></tr>')
    share = f"Average precision on test by kind of anomaly. Random scores have about {rows[0]['share']:.2f}."
    return f'<p>{share}</p><div class="wide"><table>{"".join(lines)}</table></div>'


def bars(use: str, rows: list[Row], known: dict[str, Any]) -> Figure:
    """The test value of each row, the best on top, with a dot for each seed."""
    from matplotlib.figure import Figure

    more, taken = MEASURES[use][1], known["verdict"].get("take")
    rows = sorted(rows, key=lambda row: float(np.mean(row["test"])), reverse=not more)
    figure = Figure(figsize=(5.2, 0.9 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for i, row in enumerate(rows):
        color = "#2e8b57" if row["name"] == taken else "0.7" if row["simple"] else "#7ea6d8"
        axis.barh(i, float(np.mean(row["test"])), color=color, height=0.7)
        if len(row["test"]) > 1:
            axis.plot(row["test"], [i] * len(row["test"]), "o", color="0.15", markersize=3)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axis.set_xlabel(f"{UNITS[use]} on test ({'more' if more else 'less'} is better)", fontsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure


def picture(figure: Figure, text: str) -> str:
    """A figure as an element of the page."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=140)
    return image(file.getvalue(), text, "bars")


def image(content: bytes, text: str, kind: str = "example") -> str:
    """A PNG file as an element of the page."""
    code = base64.b64encode(content).decode()
    return f'<p><img class="{kind}" alt="{escape(text)}" src="data:image/png;base64,{code}"></p>'
