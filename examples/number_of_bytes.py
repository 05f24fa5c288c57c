"""Plan a model for a number of bytes, look at the plan, and compress."""

import dpq

SOURCE = "builtin:tiny-llama"

plan = dpq.plan(SOURCE, target_size="3.5MB")
print(plan.table())

report = dpq.compress(SOURCE, "three-and-a-half", target_size="3.5MB", iterations=4, probe=False)
assert report.nbytes <= 3_500_000
print(f"{report.nbytes:,} bytes")
