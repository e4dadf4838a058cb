"""The peers' workers, each run by its peer's own Python, and what is installed there (`<name>.txt`)."""
