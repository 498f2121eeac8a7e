"""The tables and figures of the paper, one program each."""
