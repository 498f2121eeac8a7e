"""Images drawn by code: objects on textured backgrounds that give the category away in training."""
