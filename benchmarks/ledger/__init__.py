"""The recorded lines, what follows from them, and the page that shows them beside the paper."""
