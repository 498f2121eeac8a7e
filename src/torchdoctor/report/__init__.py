"""Draw figures and write the HTML report."""
