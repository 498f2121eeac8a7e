"""Studies beyond the paper: screening, power, planted faults, causes, kills."""
