"""A cell of the ledger: its network, images and arms, measured once and recorded."""
