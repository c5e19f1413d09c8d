"""The certificate of an export, export.json, as lines and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.report.elements import render_page
from maskrcnn_lit.report.format import number

Record = Mapping[str, Any]

SECTIONS = {
    "certificate": "Certificate",
    "latency": "Latency and memory",
    "about": "About this export",
}

STAGES = ("resize", "model", "masks", "all")
NAMES = {
    "exported": "the exported file",
    "library": "its library (AOTInductor)",
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
    ap, peak = record["ap"], record["peak_bytes"]
    library = record.get("library") or {"ap": {"differences": {}}}
    return render_page(
        "certificate.html",
        title=f"Export of {record['run']}",
        lead=f"{record['format']}, {record['precision']}",
        sections=SECTIONS,
        tiles=[
            ("all bounds hold", "yes" if record["holds"] else "NO", _broken(record)),
            *(
                (
                    f"{kind} AP, exported",
                    number(ap["exported"].get(key)),
                    _interval(ap["intervals"].get(key)),
                )
                for kind, key in (("mask", "val/mask_ap"), ("box", "val/box_ap"))
                if key in ap["exported"]
            ),
        ],
        bounds=_bound_rows(record),
        parity=_parity_rows(record),
        ap=[
            *_ap_rows(ap),
            *([f"library, {row[0]}", *row[1:]] for row in _ap_rows(library["ap"])),
        ],
        images=record["images"],
        float_layers=", ".join(record["float_layers"]) or "none: all stay in 8 bits",
        main_ap="mask AP" if _has_masks(record) else "box AP",
        tries=[[str(t["float_layers"]), f"{t['ap_difference']:+.4f}"] for t in record["tries"]],
        latency=_latency(record),
        files=[[file["name"], _megabytes(file["bytes"])] for file in record["files"]],
        peak=None if peak is None else _megabytes(peak),
        processor=record["processor"],
        facts=_facts(record),
    )


def _parity_rows(record: Record) -> list[list[str]]:
    return [
        [
            name,
            str(own["images"]),
            str(own["detections"]),
            str(own["unmatched"]),
            *(f"{own[key]:.2g}" for key in ("boxes", "scores")),
            f"{own['masks']:.2g}" if _has_masks(record) else "-",
        ]
        for name, own in _all_parities(record).items()
    ]


def _has_masks(record: Record) -> bool:
    return "val/mask_ap" in record["ap"]["original"]


def _all_parities(record: Record) -> dict[str, Any]:
    own = (record.get("library") or {"parity": {}})["parity"]
    return {**record["parity"], **{f"library, {name}": value for name, value in own.items()}}


def _ap_rows(ap: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for key, title in (("val/mask_ap", "mask AP"), ("val/box_ap", "box AP")):
        found = ap["differences"].get(key)
        if found is not None:
            low, high = found["interval"]
            both = [number(ap[name].get(key), 4) for name in ("original", "exported")]
            rows.append([title, *both, f"{found['value']:+.4f}", f"{low:+.4f} to {high:+.4f}"])
    return rows


def _facts(record: Record) -> list[tuple[str, str]]:
    rows = [(key, str(record[key])) for key in ("run", "checkpoint", "config_sha256")]
    return [
        *rows,
        ("options", " ".join(record["overrides"]) or "none"),
        ("commit", str((record["commit"] or {}).get("hash"))),
        *record["versions"].items(),
    ]


def _bound_rows(record: Record) -> list[list[str]]:
    return [
        [
            row["name"],
            row["value"] if isinstance(row["value"], str) else f"{row['value']:+.4f}",
            _bound(row["bound"], record["precision"]),
            "yes" if row["holds"] else "NO",
        ]
        for row in record["bounds"]
    ]


def _bound(bound: Any, precision: str) -> str:
    """An export in 8 bits may score better; one in float32 may not."""
    if isinstance(bound, str):
        return bound
    return f"within {bound:.4f}" if precision == "f32" else f">= {-bound:.4f}"


def _broken(record: Record) -> str:
    return ", ".join(row["name"] for row in record["bounds"] if not row["holds"])


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
