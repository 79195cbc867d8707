"""How a report, and `compress why`, show quantization: candidates, products by their price, the file, the sums."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.report.model import Figure, Report
from compressor.report.quantization import Built, Int8Candidate, Quantization, RankedProduct, Saturation
from compressor.report.section import Cell, Section, number, said, spread
from compressor.report.table import megabytes, ratio

CANDIDATES = (
    "scheme",
    "is",
    "drop (pp)",
    "agrees %",
    "flips",
    "logits: most",
    "mean",
    "MB",
    "p50 ms",
    "in INT8",
)


def sections(report: Report) -> tuple[Section, ...]:
    """All of them, empty ones among them."""
    several = len(report.quantization) > 1
    found = [
        part for place, one in enumerate(report.quantization) for part in of_stage(one, str(place) if several else "")
    ]
    return (*found, saturation(report.saturation), engines(report))


def of_stage(one: Quantization, place: str = "") -> tuple[Section, ...]:
    """The candidates of one stage, the ranking of its products, and what else it decided and made.

    Args:
        place: what tells the keys of several stages apart.
    """
    return tuple(part for part in (candidates(one, place), products(one, place), made(one, place)) if not part.empty)


def candidates(one: Quantization, place: str = "") -> Section:
    """Each scheme beside fp32, and which was kept."""
    made_for = f" Its weights are for {one.isa}." if one.isa else ""
    lead = f"Kept: {one.chosen}, {one.because}.{made_for}"
    note = (
        "Beside the fp32 model that went in, on select: a drop below 0 is a gain, flips are rows decided otherwise, "
        "most and mean are of the absolute difference of a logit, and products with weights are counted as operators. "
        "Times are there where the choice was made by them."
    )
    rows = tuple(_candidate(each) for each in one.candidates)
    return Section(f"int8{place}", f"INT8: {one.stage}", CANDIDATES, rows, lead=lead, note=note if rows else "")


def _candidate(one: Int8Candidate) -> tuple[Cell, ...]:
    state, tone = ("kept", "pass") if one.kept else ("refused", "fail") if one.refused else ("not chosen", "dim")
    if one.kept and one.refused:
        tone = "fail"
    count = "-" if one.integer_products is None else f"{one.integer_products:,}"
    of = f" of {one.products:,}" if one.products and one.integer_products is not None else ""
    rows = f"of {one.rows:,}" if one.flips is not None and one.rows else ""
    return (
        Cell(one.scheme),
        Cell(state, note=one.refused, tone=tone),
        number(_hundred(one.drop), ".2f"),
        number(_hundred(one.agreement), ".1f"),
        number(one.flips, ",d", note=rows),
        number(one.largest_difference, ".2g"),
        number(one.mean_difference, ".2g"),
        Cell(megabytes(one.bytes), one.bytes),
        number(one.p50_ms, ".3g"),
        Cell(f"{count}{of}", one.integer_products, _listed("in float", one.kept_in_float)),
    )


def _listed(what: str, names: Sequence[str]) -> str:
    """Such as `in float: classifier, pooler`; empty without names."""
    return f"{what}: {', '.join(names)}" if names else ""


def _hundred(share: float | None) -> float | None:
    """Percent or points, without a zero below nothing."""
    return None if share is None else round(100 * share, 6) + 0.0


def products(one: Quantization, place: str = "") -> Section:
    """The products by how far INT8 of each alone moves the answers, with the price of those left in float."""
    heads = ("product", "in mixed", "KL (nats)", "SNR (dB)", "gain (pp)", "time in float")
    rows = tuple(_product(each) for each in one.ranking)
    note = (
        "KL of the answers and signal to noise of its output are where that product alone is in INT8. Gain and time "
        "are where it alone is in float, beside the model with all in INT8; a time above 1 is slower."
    )
    lead = f"{one.ranked}." if one.ranked else ""
    return Section(f"int8{place}-products", f"INT8: {one.stage}, product by product", heads, rows, lead, note)


def _product(one: RankedProduct) -> tuple[Cell, ...]:
    return (
        Cell(one.product),
        Cell(one.precision, note=price(one), tone="" if one.precision != "int8" else "dim"),
        number(one.kl, ".2g"),
        number(one.signal_to_noise_db, ".1f"),
        number(_hundred(one.gain), "+.1f"),
        spread(one.latency_ratio, ratio),
    )


def price(one: RankedProduct) -> str:
    """What a product in float brings and costs, such as `+0.4 pp, +2 percent latency (+1 to +3)`; empty without one.

    >>> time = Figure(value=1.02, low=1.01, high=1.03)
    >>> price(RankedProduct(product="classifier", kl=0.1, precision="fp32", gain=0.004, latency_ratio=time))
    '+0.4 pp, +2 percent latency (+1 to +3)'
    """
    if one.gain is None or one.latency_ratio is None:
        return ""
    time: Figure = one.latency_ratio
    rise, low, high = (100 * (end - 1) for end in (time.value, time.low, time.high))
    return f"{one.gain * 100:+.1f} pp, {rise:+.0f} percent latency ({low:+.0f} to {high:+.0f})"


def made(one: Quantization, place: str = "") -> Section:
    """Smoothing and what else was decided, and the operators of the file."""
    noted = [(Cell(str(note["kind"])), said(note["chosen"], note=str(note.get("because") or ""))) for note in one.notes]
    rows = (*noted, *(_built(one.built) if one.built is not None else ()))
    return Section(f"int8{place}-made", f"INT8: {one.stage}, what was made", ("what", "found or chosen"), rows)


def _built(one: Built) -> list[tuple[Cell, ...]]:
    found = [f"{name} {one.fused.get(name, 0)} of {count}" for name, count in one.expected.items()]
    kinds = ", ".join(f"{name} {count}" for name, count in one.integer.items()) or "none"
    pieces, floats = _listed("left in pieces (slower, not wrong)", one.not_fused), _listed("in float", one.in_float)
    return [
        (Cell("fused operators"), Cell(", ".join(found), note=pieces)),
        (Cell("products in INT8"), Cell(f"{one.products - len(one.in_float)} of {one.products}", note=floats)),
        (Cell("INT8 operators"), Cell(kinds)),
        (Cell("word embeddings"), Cell("INT8" if one.int8_embeddings else "float")),
    ]


def saturation(one: Saturation | None) -> Section:
    """The deployed file's score with exact and with saturating sums."""
    heads = ("sums", "score %", "rows", "drop (pp)", "agrees %", "logits apart, most")
    if one is None:
        return Section("sums", "INT8: sums", heads)
    lead = f"The deployed file's weights were made for {one.isa or 'the machine that made it'}."
    if one.status != "measured":
        return Section("sums", "INT8: sums", heads, lead=f"{lead} With saturating sums: not measured, {one.reason}.")
    note = (
        f"On {one.rows:,} of the scored rows. Exact: sums of 32 bits, as with VNNI. Saturating: pairs summed in 16 "
        "bits, as x86 without VNNI does."
    )
    rows = (
        (Cell("exact"), spread(one.exact), number(one.rows, ",d"), Cell("-"), Cell("-"), Cell("-")),
        (
            Cell("saturating"),
            spread(one.saturating),
            number(one.rows, ",d"),
            spread(one.drop, tone="fail" if one.drop is not None and one.drop.low > 0 else ""),
            number(_hundred(one.agreement), ".1f"),
            number(one.largest_difference, ".2g"),
        ),
    )
    return Section("sums", "INT8: sums", heads, rows, lead=lead, note=note)


def engines(report: Report) -> Section:
    """Engines that were timed to choose the fastest, or why they were not."""
    heads = ("target", "engine", "is", "p50 ms")
    rows, leads = [], []
    for line in report.decisions:
        if line.get("kind") != "engine":
            continue
        target, chosen = str(line.get("target") or "-"), str(line.get("chosen"))
        leads.append(f"{chosen} was chosen: {line.get('because') or 'no other was there'}.")
        for name, found in dict(line.get("candidates") or {chosen: {}}).items():
            state = "chosen" if name == chosen else "refused" if found.get("refused") else "not chosen"
            tone = {"chosen": "pass", "refused": "fail"}.get(state, "dim")
            rows.append(
                (
                    Cell(target),
                    Cell(str(name)),
                    Cell(state, note=str(found.get("refused") or ""), tone=tone),
                    _milliseconds(found),
                )
            )
    return Section("engines", "Engine", heads, tuple(rows), lead=" ".join(leads))


def _milliseconds(found: dict[str, float]) -> Cell:
    value, low, high = (found.get(key) for key in ("p50_ms", "low", "high"))
    return number(value, ".3g", note="" if low is None or high is None else f"{low:.3g} to {high:.3g}")
