"""What holds for all tests: Hypothesis asserts no times, for machines are busy at times."""

from hypothesis import settings

settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")
