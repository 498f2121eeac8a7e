"""Read and write object masks in the formats of annotation programs, one module a format."""
