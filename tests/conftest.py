"""Settings that every test shares."""

from hypothesis import settings

# The first torch call takes half a second and would trip Hypothesis' deadline of 200 ms.
settings.register_profile("heartcut", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("heartcut")
