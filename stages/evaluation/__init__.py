"""What evaluation and the report share: intervals, figures of one policy, tables, charts, the page."""
