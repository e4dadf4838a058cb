"""Load tests and benches; not installed, run from the checkout."""
