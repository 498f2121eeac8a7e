"""Ask a person about labels and masks of a run, in a page of a local server, and keep the answers."""
