"""Write files as a whole, and read them back with their content checked."""
