"""Programs that measure what the package does; each claims numbers that one command measures again."""
