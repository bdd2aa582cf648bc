"""A report as one HTML file that needs nothing beside it."""

from base64 import b64encode
from datetime import UTC, datetime
from html import escape

from bigtrain.config import to_yaml
from bigtrain.report.history import History, layout_text
from bigtrain.report.summary import Summary

STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; color: #1d2125; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0 0 1rem; }
  h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
  img { width: 100%; height: auto; border: 1px solid #e7e9ec; border-radius: 6px; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  td, th { padding: .35rem .6rem; border-bottom: 1px solid #e7e9ec; text-align: left; vertical-align: top; }
  th { font-weight: 500; color: #5a6169; white-space: pre; width: 17rem; }
  pre { background: #f6f7f8; padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: 13px; }
  summary { cursor: pointer; color: #5a6169; }
"""


def report_page(history: History, summary: Summary, curve: bytes) -> str:
    """The HTML: the curve (a PNG file), the figures, what happened to the run, its configuration."""
    picture = b64encode(curve).decode("ascii")
    title = escape(summary.name)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
<h1>{title}</h1>
<img src="data:image/png;base64,{picture}" alt="Loss over steps">
<h2>Figures</h2>
{table(summary.rows())}
<h2>History</h2>
{table([_event_row(event) for event in history.events])}
<h2>Configuration</h2>
<details><summary>config.yaml, every default spelled out</summary>
<pre>{escape(to_yaml(history.config))}</pre></details>
</html>
"""


def table(rows: list[tuple[str, str]]) -> str:
    """Names and values as an HTML table."""
    cells = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{cells}\n</table>"


def _event_row(event: dict[str, object]) -> tuple[str, str]:
    told = {"event", "time", "step", "world_size", "layout", "saved_with"}
    parts = [f"{event['event']} at step {event['step']}"]
    if "layout" in event:
        parts.append(layout_text(event))
    parts += [f"{key.replace('_', ' ')} {_value(value)}" for key, value in event.items() if key not in told]
    return _when(event.get("time")), ", ".join(parts)


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _when(seconds: object) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if isinstance(seconds, int | float) else ""
