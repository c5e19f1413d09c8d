"""The certificate of an export, export.json, as lines and as a page."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from maskrcnn_lit.report import elements as html
from maskrcnn_lit.report.format import number

Record = Mapping[str, Any]

STAGES = ("resize", "model", "masks", "all")
NAMES = {
    "exported": "the exported file",
    "pytorch": "PyTorch, eager",
    "load_model": "PyTorch, load_model",
}


def certificate_table(record: Record) -> list[str]:
    """Lines to print: each bound, AP, latency, the layers that stay float."""
    holds = "holds" if record["holds"] else "BROKEN"
    lines = [f"\nThe certificate {holds}: {record['format']}, {record['precision']}"]
    lines += ["  ".join(_pad(row)) for row in _bound_rows(record)]
    head, rows = _latency(record)
    lines += ["", *["  ".join(_pad([*row])) for row in (head, *rows)]]
    if record["peak_bytes"] is not None:
        lines.append(f"peak memory of a process of its own: {_megabytes(record['peak_bytes'])}")
    if record["tries"]:
        names = ", ".join(record["float_layers"]) or "none"
        lines.append(f"layers that went back to float: {names}")
    return lines


def certificate_page(record: Record) -> str:
    """The same as HTML, with all that was measured."""
    title = f"Export of {record['run']}"
    head = (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        + html.paragraph(f"{record['format']}, {record['precision']}", "soft")
        + "\n</header>\n<main>"
    )
    body = [
        html.section("certificate", "Certificate", *_certificate(record)),
        html.section("latency", "Latency and memory", *_speed(record)),
        html.section("about", "About this export", *_about(record)),
    ]
    return html.page(title, [head, *body, "</main>"])


def _certificate(record: Record) -> Iterator[str]:
    ap = record["ap"]
    yield html.tiles(
        (
            f"{kind} AP, exported",
            number(ap["exported"].get(key)),
            _interval(ap["intervals"].get(key)),
        )
        for kind, key in (("mask", "val/mask_ap"), ("box", "val/box_ap"))
    )
    yield html.table("Bounds", ["", "value", "bound", "holds"], _bound_rows(record))
    rows = [
        [
            name,
            str(own["images"]),
            str(own["detections"]),
            str(own["unmatched"]),
            *(f"{own[key]:.2g}" for key in ("boxes", "scores", "masks")),
        ]
        for name, own in record["parity"].items()
    ]
    titles = ["", "images", "detections", "in one alone", "boxes, pixels", "scores", "masks"]
    yield html.table("The largest differences from PyTorch", titles, rows)
    yield html.table("AP", ["", "PyTorch", "exported", "difference", "95 % interval"], _ap_rows(ap))
    yield html.paragraph(
        f"AP is that of {record['images']} validation images; the interval is the paired bootstrap "
        "over images. The image that fills the slots is the one with the most detections among real "
        "images, mosaics of them and noise.",
        "soft",
    )
    if record["tries"]:
        layers = ", ".join(record["float_layers"]) or "none: all stay in 8 bits"
        yield html.paragraph(f"Layers that went back to float, the most harmful first: {layers}.")
        rows = [
            [str(t["float_layers"]), f"{t['mask_ap_difference']:+.4f}"] for t in record["tries"]
        ]
        yield html.table("Tries", ["layers in float", "mask AP difference"], rows)


def _ap_rows(ap: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for key, title in (("val/mask_ap", "mask AP"), ("val/box_ap", "box AP")):
        found = ap["differences"].get(key)
        if found is not None:
            low, high = found["interval"]
            both = [number(ap[name].get(key), 4) for name in ("original", "exported")]
            rows.append([title, *both, f"{found['value']:+.4f}", f"{low:+.4f} to {high:+.4f}"])
    return rows


def _speed(record: Record) -> Iterator[str]:
    yield html.table("Milliseconds an image: median / 95th percentile", *_latency(record))
    files = [[file["name"], _megabytes(file["bytes"])] for file in record["files"]]
    yield html.table("Files", ["", "size"], files)
    if record["peak_bytes"] is not None:
        memory = _megabytes(record["peak_bytes"])
        yield html.paragraph(f"A process that runs client.py on one image takes up to {memory}.")
    yield html.paragraph(
        f"{record['processor']}. The detectors took turns on the same images; the time is from the "
        "decoded image to the RLEs of all masks.",
        "soft",
    )


def _about(record: Record) -> Iterator[str]:
    rows = [[key, str(record[key])] for key in ("run", "checkpoint", "config_sha256")]
    rows += [["options", " ".join(record["overrides"]) or "none"]]
    rows += [["commit", str((record["commit"] or {}).get("hash"))]]
    rows += [[name, version] for name, version in record["versions"].items()]
    lines = "\n".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in rows
    )
    yield f'<dl class="facts">\n{lines}\n</dl>'
    yield html.paragraph("The numbers of this page are in export.json beside it.", "soft")


def _bound_rows(record: Record) -> list[list[str]]:
    return [
        [row["name"], _value(row["value"]), _value(row["bound"]), "yes" if row["holds"] else "NO"]
        for row in record["bounds"]
    ]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:+.4f}"


def _latency(record: Record) -> tuple[list[str], list[list[str]]]:
    rows = [
        [NAMES.get(name, name), *("{:.1f} / {:.1f}".format(*own[stage]) for stage in STAGES)]
        for name, own in record["latency_milliseconds"].items()
    ]
    return ["milliseconds", *STAGES], rows


def _pad(cells: Sequence[str]) -> list[str]:
    return [f"  {cells[0]:24}", *(f"{cell:>16}" for cell in cells[1:])]


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MB"


def _interval(interval: Sequence[float | None] | None) -> str:
    if interval is None or None in interval:
        return ""
    return f"{number(interval[0])} to {number(interval[1])}, 95 %"
