"""The section on return on investment: inputs, results with their formulas, and the months."""

from dpfpl_server.report.charts import CashLine, cash_chart
from dpfpl_server.report.figures import Figures
from dpfpl_server.report.markup import Html, paragraph, section, table, text
from dpfpl_server.report.roi import BREAK_EVEN, SCENARIOS, STEPS, RoiCase

__all__ = ["roi_section"]

INPUTS = (
    ("cases_per_month", "count"),
    ("minutes_per_case", "minutes"),
    ("minutes_per_case_assisted", "minutes"),
    ("hourly_cost", "money"),
    ("error_rate_before", "share"),
    ("error_rate_after", "share"),
    ("share_of_errors_that_cost", "share"),
    ("cost_of_an_error", "money"),
    ("new_margin_per_month", "money"),
    ("one_off_cost", "money"),
    ("running_cost_per_month", "money"),
    ("months", "months"),
)
STYLE = {"expected": 0, "low": 1, "high": 2}


def roi_section(name: str, figures: Figures, roi: RoiCase | None) -> Html:
    """The calculation, or how to have it made."""
    texts = figures.texts
    if roi is None:
        return section(texts("roi.title"), paragraph([texts("roi.template", name=name)]))
    cases = [texts(f"roi.{case}") for case in SCENARIOS]
    inputs = [
        (_named(figures, key), *(_input(figures, roi, key, unit, case) for case in SCENARIOS)) for key, unit in INPUTS
    ]
    results = [
        (
            _named(figures, step.name),
            *(_shown(figures, f"roi.{case}.{step.name}", step.unit) for case in SCENARIOS),
            Html(f"<code>{text(step.formula)}</code>"),
        )
        for step in STEPS
    ]
    results.append((texts("roi.break_even"), *_months(figures, roi), Html(f"<code>{text(BREAK_EVEN)}</code>")))
    lines = [
        CashLine(
            texts.plain(f"roi.{case}"),
            [roi.scenarios[case].cumulative(month) for month in range(roi.inputs.months + 1)],
            STYLE[case],
        )
        for case in SCENARIOS
    ]
    chart = cash_chart(texts.plain("roi.chart", currency=roi.inputs.currency), lines, texts.plain("roi.months_axis"))
    return section(
        texts("roi.title"),
        paragraph([texts("roi.intro")]),
        table(
            Html(f"{texts('roi.results')} ({text(roi.inputs.currency)})"),
            [texts("roi.result"), *cases, texts("roi.formula")],
            results,
            (1, 2, 3),
        ),
        paragraph([texts("roi.chart", currency=roi.inputs.currency)], "caption"),
        chart,
        table(texts("roi.inputs"), [texts("roi.input"), *cases], inputs, (1, 2, 3)),
        paragraph(_origin(figures, roi), "quiet", between=texts.space),
    )


def _named(figures: Figures, key: str) -> Html:
    return Html(f"{figures.texts(f'roi.{key}')}<br><code>{text(key)}</code>")


def _input(figures: Figures, roi: RoiCase, key: str, unit: str, case: str) -> Html:
    """An error rate of the run carries the formula over result.json, everything else its place among the inputs."""
    formula = roi.rate_formulas.get(key, {}).get(case, f"roi.{case}.{key}")
    return _shown(figures, formula, unit)


def _shown(figures: Figures, formula: str, unit: str) -> Html:
    match unit:
        case "share":
            return figures.percent(formula)
        case "hours" | "cases" | "minutes":
            return figures.number(formula, 1)
        case "money":
            return figures.money(formula)
        case _:
            return figures.number(formula)


def _months(figures: Figures, roi: RoiCase) -> list[Html]:
    shown = []
    for case in SCENARIOS:
        month = roi.scenarios[case].break_even_month
        number = figures.number(f"roi.{case}.break_even_month")
        late = month is not None and month > roi.inputs.months
        shown.append(
            figures.texts("roi.never")
            if month is None
            else figures.texts("roi.after_horizon", month=number)
            if late
            else number
        )
    return shown


def _origin(figures: Figures, roi: RoiCase) -> list[Html]:
    texts = figures.texts
    if not roi.rate_formulas:
        return [texts("roi.rates_company")]
    notes = [texts("roi.rates_run")]
    if len(roi.rate_formulas) == 1:
        notes.append(texts("roi.rates_company_one"))
    if "error_rate_before" in roi.rate_formulas:
        notes.append(texts("roi.rates_before"))
    return notes
