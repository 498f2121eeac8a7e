"""A classifier with its data and settings, checked against each other before anything is written."""
