"""How much each kernel speaks for a category in one image (Eq. 2-4), computed the fastest exact way."""
