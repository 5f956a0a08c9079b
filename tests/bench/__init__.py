"""What the layer costs, as ratios to plain gevent: `python -m tests.bench`."""
