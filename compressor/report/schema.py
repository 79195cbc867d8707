"""The published JSON schema of report.json, made from the model that reads and writes it."""

from __future__ import annotations

import json
from typing import Any

from compressor.report.model import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def report_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of report.json: what an older report may lack is not required."""
    return {"$schema": DIALECT, **Report.model_json_schema(by_alias=True, mode="validation"), "title": "report.json"}


def schema_text() -> str:
    """The schema as it stands in docs/report.schema.json."""
    return json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"
