"""Draw figures and write the report of a run as an HTML page."""
